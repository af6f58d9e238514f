import type { CachePolicy } from "@magicdec/cache";
import {
  BatchState,
  ChainDraft,
  type Draft,
  type GraphSizes,
  Iteration,
  RecordBuffers,
  Verifier,
} from "@magicdec/speculation";
import type { Device, DeviceEvent, Tensor } from "@magicdec/tensor";
import type { Resident } from "./resident.ts";
import { Selection } from "./selection.ts";
import type { SpeculationConfig } from "./types.ts";

/** Iterations in flight: the host reads one while the device runs the next. */
export const depth = 2;

export interface DecoderContext {
  readonly device: Device;
  /** Rows of the largest batch. */
  readonly batch: number;
  readonly target: Resident;
  readonly draft: Resident | undefined;
  /** (batch * (gamma + 1), vocab) f32 at least. */
  readonly logits: Tensor;
  /** (batch * gamma * vocab) f32 at least: the draft's distributions, under rejection. */
  readonly probabilities: () => Tensor;
  readonly graphs: GraphSizes;
}

/**
 * What decode runs of one configuration keep on the device: the state of the batch, who drafts and who judges, the records, and the graphs over them.
 * Everything that differs between two runs (prompts, lengths, sampling, the size of the batch) is written into it by `begin`.
 */
export class Decoder implements Disposable {
  readonly gamma: number;
  readonly state: BatchState;
  readonly draft: Draft | undefined;
  readonly buffers: RecordBuffers;
  readonly iteration: Iteration;
  readonly selection: Selection | undefined;
  readonly events: readonly DeviceEvent[];
  readonly #context: DecoderContext;
  readonly #policy: CachePolicy | undefined;
  readonly #owned: DisposableStack;

  /** `policy`: what the draft reads; absent where nothing drafts. */
  constructor(context: DecoderContext, spec: SpeculationConfig, policy: CachePolicy | undefined) {
    const { device, batch, target, logits } = context;
    using stack = new DisposableStack();
    this.#context = context;
    this.#policy = policy;
    this.gamma = spec.method === "off" ? 0 : spec.gamma;
    this.events = Array.from({ length: depth }, () => stack.use(device.stream.event()));
    this.state = stack.use(new BatchState(device, batch, this.gamma));
    this.buffers = stack.use(new RecordBuffers(device, batch, this.gamma));
    this.draft = policy && stack.use(makeDraft(context, spec, this.state, policy));
    const verifier = stack.use(
      new Verifier({
        device,
        model: target.model,
        workspace: target.workspace,
        cache: target.cache,
        state: this.state,
        rule: spec.method === "off" ? "match" : spec.rule,
        logits,
        counts: this.buffers.counts,
        emitted: this.buffers.emitted,
        keep: spec.method === "self" && policy?.selects ? target.queries : undefined,
      }),
    );
    this.selection =
      this.draft !== undefined && policy?.selects
        ? stack.use(new Selection(device, this.draft, context.graphs !== "none"))
        : undefined;
    this.iteration = stack.use(
      new Iteration({
        device,
        state: this.state,
        draft: this.draft,
        verifier,
        buffers: this.buffers,
        graphs: context.graphs,
      }),
    );
    this.#owned = stack.move();
  }

  /** Enqueues: a new run of the first `rows` rows. */
  begin(rows: number): void {
    this.state.begin(rows);
    this.buffers.begin();
    this.#policy?.begin();
    for (let row = rows; row < this.state.batch; row++) this.#parkCaches(row);
  }

  /** Enqueues: row `row` takes over row `from`, the last one, whose place is parked. `row` may be `from` itself. */
  leave(row: number, from: number): void {
    const { target } = this.#context;
    target.cache.release(row);
    this.draft?.release(row);
    if (row !== from) {
      target.cache.moveRow(from, row);
      target.queries.moveRow(from, row);
      this.draft?.moveRow(from, row);
      this.state.moveRow(from, row);
    }
    this.state.park(from);
    this.#parkCaches(from);
  }

  /** Room for `tokens` tokens in row `row`. */
  ensure(row: number, tokens: number): void {
    this.#context.target.cache.ensure(row, tokens);
    this.draft?.ensure(row, tokens);
  }

  [Symbol.dispose](): void {
    this.#owned.dispose();
  }

  #parkCaches(row: number): void {
    this.#context.target.cache.park(row);
    this.draft?.park(row);
  }
}

function makeDraft(
  context: DecoderContext,
  spec: SpeculationConfig,
  state: BatchState,
  policy: CachePolicy,
): Draft {
  const { device, logits, target } = context;
  const own = spec.method === "model";
  const { model, workspace, cache, queries } = own ? (context.draft as Resident) : target;
  const { vocabSize } = model.config;
  return new ChainDraft({
    device,
    model,
    workspace,
    cache,
    policy,
    state,
    rule: spec.rule,
    logits,
    probabilities:
      spec.rule === "rejection"
        ? context.probabilities().view([state.batch, state.gamma, vocabSize])
        : undefined,
    ownCache: own,
    keep: own && policy.selects ? queries : undefined,
  });
}

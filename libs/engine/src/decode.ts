import { cachePolicies } from "@magicdec/cache";
import {
  BatchState,
  ChainDraft,
  type Draft,
  Iteration,
  type IterationRecord,
  RecordBuffers,
  Verifier,
} from "@magicdec/speculation";
import { type Device, type DeviceEvent, type Graph, sample, type Tensor } from "@magicdec/tensor";
import type { Resident } from "./resident.ts";
import { RunStats } from "./stats.ts";
import type {
  DecodeOptions,
  DecodeResult,
  FinishReason,
  SamplingConfig,
  SpeculationConfig,
} from "./types.ts";

/** Iterations in flight: the host reads one while the device runs the next. */
const depth = 2;
/** How long the host may keep its event loop waiting, milliseconds. */
const yieldEveryMs = 100;

export interface DecodeContext {
  readonly device: Device;
  readonly target: Resident;
  readonly draft: Resident | undefined;
  /** (batch * (gamma + 1), vocab) f32 at least. */
  readonly logits: Tensor;
  readonly prompts: readonly Int32Array[];
  readonly graphs: boolean;
}

/** One row of the running batch. */
interface Row {
  readonly sequence: number;
  /** Tokens in the cache as far as the host has read. */
  length: number;
  left: number;
  /** Length at the last selection. */
  selectedAt: number;
}

interface InFlight {
  readonly index: number;
  readonly rows: readonly Row[];
  readonly event: DeviceEvent;
  /** The selection that ran just before it. */
  readonly selection: number | undefined;
}

/** One decode run over prefilled prompts: keeps iterations in flight, lets sequences leave as they finish, gathers what was measured. */
export class DecodeRun implements Disposable {
  readonly #context: DecodeContext;
  readonly #options: DecodeOptions;
  readonly #state: BatchState;
  readonly #draft: Draft | undefined;
  readonly #verifier: Verifier;
  readonly #buffers: RecordBuffers;
  readonly #iteration: Iteration;
  readonly #selection: Selection | undefined;
  readonly #events: DeviceEvent[];
  readonly #stats: RunStats;
  readonly #tokens: number[][];
  readonly #finish: FinishReason[];
  readonly #eos: readonly ReadonlySet<number>[];
  readonly #gamma: number;
  #rows: Row[];

  constructor(
    context: DecodeContext,
    spec: SpeculationConfig,
    sampling: SamplingConfig | readonly SamplingConfig[],
    options: DecodeOptions,
  ) {
    const { device, target, prompts, logits } = context;
    if (device.backend === "null") {
      throw new RangeError(
        "decode: expected a device that computes, got the null backend, which only records; take --device cpu",
      );
    }
    const batch = prompts.length;
    const gamma = spec.method === "off" ? 0 : spec.gamma;
    this.#context = context;
    this.#options = options;
    this.#gamma = gamma;
    this.#state = new BatchState(device, batch, gamma);
    this.#draft = makeDraft(context, spec, this.#state);
    this.#buffers = new RecordBuffers(device, batch, gamma);
    this.#verifier = new Verifier({
      device,
      model: target.model,
      workspace: target.workspace,
      cache: target.cache,
      state: this.#state,
      rule: spec.method === "off" ? "match" : spec.rule,
      logits,
      counts: this.#buffers.counts,
      emitted: this.#buffers.emitted,
      keep: spec.method === "self" && observes(spec) ? target.queries : undefined,
    });
    this.#iteration = new Iteration({
      device,
      state: this.#state,
      draft: this.#draft,
      verifier: this.#verifier,
      buffers: this.#buffers,
      graphs: context.graphs,
    });
    this.#selection =
      this.#draft !== undefined && this.#draft.selectEvery !== Number.POSITIVE_INFINITY
        ? new Selection(device, this.#draft, context.graphs)
        : undefined;
    this.#events = Array.from({ length: depth }, () => device.stream.event());
    this.#stats = new RunStats(gamma, batch);
    this.#eos = prompts.map((_, sequence) => new Set(eosOf(options.eosTokenIds, sequence)));
    this.#tokens = prompts.map(() => []);
    this.#finish = prompts.map(() => "aborted");
    this.#rows = prompts.map((prompt, sequence) => ({
      sequence,
      length: prompt.length,
      left: limit(options.maxNewTokens, sequence),
      selectedAt: prompt.length,
    }));
    for (const [row, prompt] of prompts.entries()) {
      const key = options.sequenceKeys?.[row] ?? row;
      this.#state.setSampling(row, { ...pick(sampling, row), sequence: key });
      this.#state.setPrompt(row, prompt.length, prompt[prompt.length - 1] as number);
    }
  }

  async run(): Promise<DecodeResult> {
    const { device, target, draft } = this.#context;
    target.rewind();
    draft?.rewind();
    this.#firstTokens();
    // One token each comes from the prompt's logits: all may have finished already.
    if (this.#rows.length > 0) {
      this.#selection?.launch(this.#rows.length);
      this.#iteration.prepare(this.#rows.length);
    }
    device.stream.sync();
    await this.#loop();
    device.stream.sync();
    return {
      tokens: this.#tokens.map((tokens) => Int32Array.from(tokens)),
      finish: this.#finish,
      stats: this.#stats.finish(),
    };
  }

  [Symbol.dispose](): void {
    this.#context.device.stream.sync();
    this.#iteration[Symbol.dispose]();
    this.#selection?.[Symbol.dispose]();
    for (const event of this.#events) event.dispose();
    this.#verifier[Symbol.dispose]();
    this.#draft?.[Symbol.dispose]();
    this.#buffers[Symbol.dispose]();
    this.#state[Symbol.dispose]();
  }

  /** Draws each sequence's first token from the prompt's logits, and hands it out. */
  #firstTokens(): void {
    const { target, prompts, device } = this.#context;
    const b = prompts.length;
    const last = Int32Array.from(prompts, (prompt) => prompt.length - 1);
    using positions = device.from(last, [b], "i32");
    sample({
      logits: target.promptLogits.rows(0, b),
      params: this.#state.params.rows(0, b),
      positions,
      out: this.#state.ids(b, 1, 1),
      outStride: this.#state.stride,
      stream: "target",
    });
    const chain = this.#state.chain.read() as Int32Array;
    const rows = [...this.#rows];
    for (const [row, entry] of rows.entries()) {
      this.#take(entry, [chain[row * this.#state.stride + 1] as number]);
    }
    this.#leave(rows);
  }

  async #loop(): Promise<void> {
    const { signal, onProgress } = this.#options;
    const inFlight: InFlight[] = [];
    let launched = 0;
    let yieldedAt = performance.now();
    this.#stats.start();
    while (inFlight.length > 0 || (this.#rows.length > 0 && !signal?.aborted)) {
      while (inFlight.length < depth && this.#mayLaunch(inFlight.length) && !signal?.aborted) {
        inFlight.push(this.#launch(launched++, inFlight.length));
      }
      const oldest = inFlight.shift();
      if (oldest === undefined) break;
      this.#stats.waitFor(() => oldest.event.wait());
      this.#absorb(oldest, this.#buffers.read(oldest.index, oldest.rows.length));
      onProgress?.(this.#stats.newTokens);
      if (performance.now() - yieldedAt > yieldEveryMs) {
        await new Promise(setImmediate);
        yieldedAt = performance.now();
      }
    }
    this.#stats.stop();
  }

  /**
   * An iteration ahead of what was read pays only where every row is sure to need it: a row that may have finished would cost
   * the next pass its whole share, against a gap of microseconds.
   */
  #mayLaunch(inFlight: number): boolean {
    if (this.#rows.length === 0) return false;
    const possible = inFlight * (this.#gamma + 1);
    return this.#rows.every((row) => row.left > possible);
  }

  #launch(index: number, inFlight: number): InFlight {
    const { target } = this.#context;
    const b = this.#rows.length;
    const step = this.#gamma + 1;
    for (const [i, row] of this.#rows.entries()) {
      const tokens = row.length + (inFlight + 1) * step;
      target.cache.ensure(i, tokens);
      this.#draft?.ensure(i, tokens);
    }
    let selection: number | undefined;
    if (this.#selection?.due(this.#rows)) {
      selection = this.#selection.launch(b);
      for (const row of this.#rows) row.selectedAt = row.length;
    }
    const event = this.#events[index % depth] as DeviceEvent;
    this.#iteration.launch(b);
    event.record();
    return { index, rows: [...this.#rows], event, selection };
  }

  #absorb(launch: InFlight, record: IterationRecord): void {
    const { target } = this.#context;
    const lengths = launch.rows.map((row) => row.length);
    const { selection } = launch;
    const msSelect = selection === undefined ? 0 : (this.#selection?.ms(selection) ?? 0);
    const verifyBytes =
      target.model.weightBytes +
      lengths.reduce((sum, length) => sum + length, 0) * target.model.kvBytesPerToken;
    const draftBytes = this.#gamma * (this.#draft?.bytesRead(lengths) ?? 0);
    this.#stats.add(record, { msSelect, draftBytes, verifyBytes });
    for (const [i, row] of launch.rows.entries()) {
      const tokens = record.tokens[i] ?? [];
      row.length += tokens.length;
      if (row.left > 0) this.#stats.countTokens(this.#take(row, tokens));
    }
    this.#leave(launch.rows);
    if (this.#options.isAborted !== undefined) this.#leaveAborted(this.#options.isAborted);
  }

  #leaveAborted(isAborted: (sequence: number) => boolean): void {
    const aborted = this.#rows.filter((row) => isAborted(row.sequence));
    for (const row of aborted) row.left = 0;
    this.#leave(aborted);
  }

  /** Hands a row's tokens out, up to its limit or an end of sequence. Returns how many. */
  #take(row: Row, tokens: readonly number[]): number {
    let kept = tokens.slice(0, row.left);
    const end = kept.findIndex((token) => this.#eos[row.sequence]?.has(token));
    if (end >= 0) kept = kept.slice(0, end + 1);
    row.left = end >= 0 ? 0 : row.left - kept.length;
    if (row.left === 0) this.#finish[row.sequence] = end >= 0 ? "eos" : "length";
    this.#tokens[row.sequence]?.push(...kept);
    if (kept.length > 0) this.#options.onTokens?.(row.sequence, kept);
    return kept.length;
  }

  /** Finished rows leave at once: their pages go back, and the last row takes their place. */
  #leave(rows: readonly Row[]): void {
    const { target } = this.#context;
    for (const row of rows) {
      if (row.left > 0) continue;
      const index = this.#rows.indexOf(row);
      if (index < 0) continue;
      const last = this.#rows.length - 1;
      target.cache.release(index);
      this.#draft?.release(index);
      if (index !== last) {
        target.cache.moveRow(last, index);
        target.queries.moveRow(last, index);
        this.#draft?.moveRow(last, index);
        this.#state.moveRow(last, index);
        this.#rows[index] = this.#rows[last] as Row;
      }
      this.#rows.pop();
    }
  }
}

/** Selection of what a draft reads, as a graph of its own between iterations, timed by the device. */
class Selection implements Disposable {
  readonly #graphs = new Map<number, Graph>();
  /** Start and end of each selection that may be in flight. */
  readonly #stamps: Tensor;
  #launched = 0;

  constructor(
    private readonly device: Device,
    private readonly draft: Draft,
    private readonly useGraphs: boolean,
  ) {
    this.#stamps = device.alloc([2 * depth], "f64", { kind: "host" });
  }

  due(rows: readonly Row[]): boolean {
    return rows.some((row) => row.length - row.selectedAt >= this.draft.selectEvery);
  }

  /** Enqueues a selection for the first `b` rows; returns what `ms` takes. */
  launch(b: number): number {
    const slot = this.#launched++ % depth;
    this.device.stream.timestamp(this.#stamps, 2 * slot);
    this.#enqueue(b);
    this.device.stream.timestamp(this.#stamps, 2 * slot + 1);
    return slot;
  }

  /** Milliseconds of a selection that has run. */
  ms(slot: number): number {
    const stamps = this.#stamps.hostArray() as Float64Array;
    return ((stamps[2 * slot + 1] ?? 0) - (stamps[2 * slot] ?? 0)) / 1e6;
  }

  #enqueue(b: number): void {
    if (!this.useGraphs) return this.draft.select(b);
    let graph = this.#graphs.get(b);
    if (graph === undefined) {
      graph = this.device.stream.capture(() => this.draft.select(b));
      this.#graphs.set(b, graph);
    }
    graph.launch();
  }

  [Symbol.dispose](): void {
    for (const graph of this.#graphs.values()) graph.dispose();
    this.#stamps.dispose();
  }
}

function observes(spec: SpeculationConfig): boolean {
  return cachePolicies[spec.cache].observesQueries;
}

function makeDraft(
  context: DecodeContext,
  spec: SpeculationConfig,
  state: BatchState,
): Draft | undefined {
  if (spec.method === "off") return undefined;
  const { device, target, draft, logits } = context;
  const own = spec.method === "model";
  const resident = own ? draft : target;
  if (resident === undefined) {
    throw new RangeError('method "model": expected a draft model, got none; load one with `draft`');
  }
  const factory = cachePolicies[spec.cache];
  const problem = factory.validate(spec);
  if (problem !== undefined) throw new RangeError(problem);
  const { model, workspace, cache, queries } = resident;
  const policy = factory.create({
    device,
    cache,
    queries: factory.observesQueries ? queries : undefined,
    batch: state.batch,
    budget: spec.budget,
    sinks: spec.sinks,
    window: spec.window,
    reselectEvery: spec.reselectEvery,
  });
  return new ChainDraft({
    device,
    model,
    workspace,
    cache,
    policy,
    state,
    rule: spec.rule,
    logits,
    ownCache: own,
    keep: own && factory.observesQueries ? queries : undefined,
  });
}

function pick(sampling: SamplingConfig | readonly SamplingConfig[], row: number): SamplingConfig {
  const chosen = Array.isArray(sampling) ? sampling[row] : sampling;
  if (chosen === undefined)
    throw new RangeError(`sampling: expected one for sequence ${row}, got none`);
  return chosen;
}

function eosOf(ids: DecodeOptions["eosTokenIds"], sequence: number): readonly number[] {
  const first = ids?.[0];
  if (first === undefined) return [];
  return typeof first === "number"
    ? (ids as readonly number[])
    : ((ids as readonly (readonly number[])[])[sequence] ?? []);
}

function limit(maxNewTokens: number | readonly number[], sequence: number): number {
  const value = typeof maxNewTokens === "number" ? maxNewTokens : maxNewTokens[sequence];
  if (value === undefined || !Number.isInteger(value) || value < 1) {
    throw new RangeError(
      `maxNewTokens: expected an integer >= 1 for each sequence, got ${value} for ${sequence}`,
    );
  }
  return value;
}

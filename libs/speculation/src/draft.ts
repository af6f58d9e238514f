import type { CachePolicy, PagedKv, QueryRing } from "@magicdec/cache";
import type { Model, Workspace } from "@magicdec/model";
import { type Device, positions, sample, type Tensor } from "@magicdec/tensor";
import { type BatchState, RowLayout } from "./batch.ts";
import type { AcceptRule } from "./verify.ts";

/** Proposes gamma tokens a row. Who proposes may change from one iteration to the next: all it leaves behind is the chain. */
export interface Draft extends Disposable {
  /** Enqueues gamma steps for the first `b` rows: fills chain columns 2 .. gamma + 1 (and the probabilities under rejection). */
  propose(b: number): void;
  /** (batch, gamma, vocab) f32: the distributions drawn from, under rejection. */
  readonly probabilities: Tensor | undefined;
  /** Generated tokens between selections of what is read; Infinity: never. */
  readonly selectEvery: number;
  /** Enqueues a selection for the first `b` rows. */
  select(b: number): void;
  /** Room for `tokens` tokens in row `row` of a cache of its own. */
  ensure(row: number, tokens: number): void;
  release(row: number): void;
  moveRow(from: number, to: number): void;
  /** Row `row` holds no sequence. */
  park(row: number): void;
  /** Bytes one draft step has to read at these context lengths. */
  bytesRead(lengths: readonly number[]): number;
}

export interface ChainDraftOptions {
  readonly device: Device;
  readonly model: Model;
  readonly workspace: Workspace;
  /** Where the drafted tokens' KV goes: the target's own pages for self-speculation. */
  readonly cache: PagedKv;
  /** The caller's, who disposes of it: drafts of other gammas may share it. */
  readonly policy: CachePolicy;
  readonly state: BatchState;
  readonly rule: AcceptRule;
  /** (batch * 1, vocab) f32 at least. */
  readonly logits: Tensor;
  /** (batch, gamma, vocab) f32: where the distributions drawn from go, under rejection. */
  readonly probabilities?: Tensor | undefined;
  /**
   * The draft has a model and a cache of its own. Its cache may lack the token before the current one (a fully accepted chain's last draft was never
   * its input), so the first step always takes both: rewriting KV that is there gives the same bits.
   */
  readonly ownCache: boolean;
  /** Queries to keep, for a policy that observes a draft model's own queries. */
  readonly keep?: QueryRing | undefined;
}

/** A model that drafts token by token over what its cache policy lets it read: the target itself, or a smaller one. */
export class ChainDraft implements Draft {
  readonly #one: RowLayout;
  readonly #two: RowLayout | undefined;
  readonly #lengths: RowLayout;

  constructor(private readonly options: ChainDraftOptions) {
    const { device, state, ownCache } = options;
    this.#one = new RowLayout(device, state.batch, 1);
    this.#two = ownCache ? new RowLayout(device, state.batch, 2) : undefined;
    this.#lengths = new RowLayout(device, state.batch, 1);
  }

  get probabilities(): Tensor | undefined {
    return this.options.probabilities;
  }

  get selectEvery(): number {
    return this.options.policy.selectEvery;
  }

  propose(b: number): void {
    for (let step = 0; step < this.options.state.gamma; step++) this.#step(b, step);
  }

  #step(b: number, step: number): void {
    const { model, workspace, cache, policy, state, rule, keep } = this.options;
    const catchUp = step === 0 && this.#two !== undefined;
    const layout = catchUp ? (this.#two as RowLayout) : this.#one;
    const { r } = layout;
    const one = this.#one.of(b);
    const lens = state.lens.rows(0, b);
    positions({ lens, positions: one.positions, kvLen: one.kvLen, offset: step });
    const rows = layout.of(b);
    if (catchUp) {
      positions({ lens, positions: rows.positions, kvLen: rows.kvLen, offset: step - 1 });
    }
    const logits = this.options.logits.rows(0, b);
    model.forward(
      workspace,
      {
        rows: b * r,
        ids: state.ids(b, step + 2 - r, r),
        idsStride: state.stride,
        positions: rows.positions,
        rowSeq: rows.rowSeq,
        qStart: rows.qStart,
        kvLen: rows.kvLen,
        cache,
      },
      {
        view: (layer) => policy.view(layer, b),
        sinkViewTokens: policy.sinkViewTokens,
        keep: keep && { ring: keep, rowSeq: rows.rowSeq },
        logits,
        logitRows: catchUp ? rows.lastRows : undefined,
      },
    );
    const vocab = model.config.vocabSize;
    sample({
      logits,
      params: state.params.rows(0, b),
      positions: one.positions,
      out: state.ids(b, step + 2, 1),
      outStride: state.stride,
      probs: this.probabilities?.view([b, 1, vocab], { byteOffset: 4 * step * vocab }),
      probsStride: state.gamma,
      stream: rule === "rejection" ? "draft" : "target",
    });
  }

  select(b: number): void {
    const { policy, state, ownCache } = this.options;
    if (policy.selectEvery === Number.POSITIVE_INFINITY) return;
    const lens = state.lens.rows(0, b);
    if (!ownCache) return policy.select(b, lens);
    // A draft's own cache is sure to hold all tokens but the last.
    const { positions: unused, kvLen } = this.#lengths.of(b);
    positions({ lens, positions: unused, kvLen, offset: -2 });
    policy.select(b, kvLen);
  }

  ensure(row: number, tokens: number): void {
    if (this.options.ownCache) this.options.cache.ensure(row, tokens);
  }

  release(row: number): void {
    if (this.options.ownCache) this.options.cache.release(row);
  }

  moveRow(from: number, to: number): void {
    if (this.options.ownCache) this.options.cache.moveRow(from, to);
    this.options.policy.moveRow(from, to);
    this.options.keep?.moveRow(from, to);
  }

  park(row: number): void {
    if (this.options.ownCache) this.options.cache.park(row);
    this.options.policy.park(row);
  }

  bytesRead(lengths: readonly number[]): number {
    const { model, policy } = this.options;
    const tokens = lengths.reduce((sum, length) => sum + policy.tokensRead(length), 0);
    return model.weightBytes + tokens * model.kvBytesPerToken;
  }

  [Symbol.dispose](): void {
    this.#one[Symbol.dispose]();
    this.#two?.[Symbol.dispose]();
    this.#lengths[Symbol.dispose]();
  }
}

import type { PagedKv, QueryRing } from "@magicdec/cache";
import type { Model, Workspace } from "@magicdec/model";
import { accept, type Device, positions, sample, type Tensor } from "@magicdec/tensor";
import { type BatchState, RowLayout } from "./batch.ts";

/**
 * How drafted tokens are judged.
 *
 * - `match`: the target chooses a token at each position as it would without a draft (argmax, or its own draw with noise keyed by seed, sequence and
 *   position), and a draft stands while it is that token. Greedy and sampled runs then return exactly the tokens of plain decoding with that seed. The draft shares
 *   the noise, which is what makes it agree often (coupled, drafter-invariant decoding: Daliri et al. 2408.07978).
 * - `rejection`: draft d stands with probability min(1, p(d) / q(d)); the first that falls is replaced by a draw from the residual max(p - q, 0)
 *   (Leviathan et al. 2211.17192, Chen et al. 2302.01318). Same distribution, highest acceptance; draft, accept and recovery draws use disjoint noise.
 */
export type AcceptRule = "match" | "rejection";

export interface VerifierOptions {
  readonly device: Device;
  readonly model: Model;
  readonly workspace: Workspace;
  readonly cache: PagedKv;
  readonly state: BatchState;
  readonly rule: AcceptRule;
  /** (batch * (gamma + 1), vocab) f32 */
  readonly logits: Tensor;
  /** Where the counts (batch) i32 and the emitted tokens (batch, gamma + 1) i32 go. */
  readonly counts: Tensor;
  readonly emitted: Tensor;
  /** The exact queries are kept for a policy that observes them. */
  readonly keep?: QueryRing | undefined;
}

/** One pass of the target over the chain, and the decision. With gamma 0 it is a step of plain decoding. */
export class Verifier implements Disposable {
  readonly #layout: RowLayout;
  readonly #choices: Tensor;

  constructor(private readonly options: VerifierOptions) {
    const { device, state } = options;
    this.#layout = new RowLayout(device, state.batch, state.gamma + 1);
    this.#choices = device.alloc([state.batch, state.gamma + 1], "i32");
  }

  /** Enqueues the target's forward over [current, d1 .. dg] of the first `b` rows; overwrites drafted KV by exact KV. */
  forward(b: number): void {
    const { model, workspace, cache, state, keep } = this.options;
    const rows = this.#layout.of(b);
    const r = this.#layout.r;
    const lens = state.lens.rows(0, b);
    positions({ lens, positions: rows.positions, kvLen: rows.kvLen, offset: 0 });
    model.forward(
      workspace,
      {
        rows: b * r,
        ids: state.ids(b, 1, r),
        idsStride: state.stride,
        positions: rows.positions,
        rowSeq: rows.rowSeq,
        qStart: rows.qStart,
        kvLen: rows.kvLen,
        cache,
      },
      {
        keep: keep && { ring: keep, rowSeq: rows.rowSeq },
        logits: this.options.logits.rows(0, b * r),
      },
    );
  }

  /** Enqueues the decision: counts, emitted tokens, and the state of the next iteration. */
  decide(b: number, draftProbabilities: Tensor | undefined): void {
    const { state, rule, logits, counts, emitted, model } = this.options;
    const r = this.#layout.r;
    const rows = this.#layout.of(b);
    const params = state.params.rows(0, b);
    const common = {
      chain: state.chain.rows(0, b),
      params,
      active: state.active.rows(0, b),
      lens: state.lens.rows(0, b),
      count: counts.rows(0, b),
      out: emitted.rows(0, b),
    };
    if (rule === "rejection" && draftProbabilities !== undefined) {
      accept({
        ...common,
        rule,
        targetLogits: logits.rows(0, b * r),
        draftProbs: draftProbabilities.view([b, state.gamma, model.config.vocabSize]),
      });
      return;
    }
    const targetTokens = this.#choices.rows(0, b);
    sample({
      logits: logits.rows(0, b * r),
      params,
      positions: rows.positions,
      out: targetTokens,
      outStride: r,
      stream: "target",
    });
    accept({ ...common, rule: "match", targetTokens });
  }

  [Symbol.dispose](): void {
    this.#layout[Symbol.dispose]();
    this.#choices.dispose();
  }
}

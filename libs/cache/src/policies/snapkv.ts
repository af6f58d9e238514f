import type { Tensor } from "@magicdec/tensor";
import { copy, gatherKv, snapScore, snapSelect } from "@magicdec/tensor";
import { PagedKv, type PagedKvOptions, pagedKvBytes } from "../pages.ts";
import type { AttentionView, CachePolicy, CachePolicyFactory, PolicyContext } from "../policy.ts";
import type { QueryRing } from "../queries.ts";

/** Width of the pooling over neighbouring tokens' scores; the paper's choice in MagicDec's experiments. */
const poolingKernel = 5;

/**
 * SnapKV (Li et al. 2404.14469): the tokens that the last `window` queries attend to most, per KV head, besides that window and everything
 * generated since. Scores carry 1/sqrt(d), are summed over the GQA group and average-pooled; the selection is made anew every `reselectEvery` tokens.
 * The selected tokens are gathered into a compact cache of their own; what follows them is read from the target's pages, which verify keeps exact.
 */
class SnapKv implements CachePolicy {
  readonly name = "snapkv";
  readonly sinkViewTokens = 0;
  readonly selects = true;
  readonly selectEvery: number;
  readonly #context: PolicyContext;
  readonly #queries: QueryRing;
  readonly #compact: PagedKv;
  /** (batch) i32 each; the same for all layers, since they depend on lengths alone. */
  readonly #prefixLen: Tensor;
  readonly #tailStart: Tensor;
  /** (batch, kvHeads, selected) i32 and (batch, kvHeads, maxTokens) f32: scratch of one layer's selection. */
  readonly #indices: Tensor;
  readonly #scores: Tensor;
  readonly #pooled: Tensor;

  constructor(context: PolicyContext) {
    const { device, cache, batch, budget, window, queries } = context;
    if (queries === undefined) throw new Error("snapkv cache: expected kept queries, got none");
    this.#context = context;
    this.#queries = queries;
    this.selectEvery = context.reselectEvery;
    const selected = budget - window;
    this.#compact = new PagedKv(device, compactOptions(cache.options, batch, selected));
    const { kvHeads, maxPagesPerSequence, pageSize } = cache.options;
    const maxTokens = maxPagesPerSequence * pageSize;
    this.#prefixLen = device.alloc([batch], "i32");
    this.#tailStart = device.alloc([batch], "i32");
    this.#indices = device.alloc([batch, kvHeads, selected], "i32");
    this.#scores = device.alloc([batch, kvHeads, maxTokens], "f32");
    this.#pooled = device.alloc([batch, kvHeads, maxTokens], "f32");
  }

  view(layer: number, b: number): AttentionView {
    return {
      prefixCache: this.#compact.ref,
      prefixLayer: layer,
      prefixTable: this.#compact.blockTable.rows(0, b),
      prefixLen: this.#prefixLen.rows(0, b),
      tailStart: this.#tailStart.rows(0, b),
    };
  }

  select(b: number, lens: Tensor): void {
    const { cache, window, budget } = this.#context;
    const blockTable = cache.blockTable.rows(0, b);
    const scores = this.#scores.rows(0, b);
    const pooled = this.#pooled.rows(0, b);
    const indices = this.#indices.rows(0, b);
    const prefixLen = this.#prefixLen.rows(0, b);
    const tailStart = this.#tailStart.rows(0, b);
    const outTable = this.#compact.blockTable.rows(0, b);
    const scale = 1 / Math.sqrt(cache.options.headDim);
    for (const [layer, ring] of this.#queries.layers.entries()) {
      const queries = ring.rows(0, b);
      snapScore({ queries, lens, blockTable, scores, cache: cache.ref, layer, window, scale });
      snapSelect({
        scores,
        lens,
        indices,
        prefixLen,
        tailStart,
        pooled,
        budget,
        window,
        kernel: poolingKernel,
        pooling: "average",
      });
      gatherKv({
        indices,
        prefixLen,
        sourceTable: blockTable,
        outTable,
        source: cache.ref,
        out: this.#compact.ref,
        sourceLayer: layer,
        outLayer: layer,
      });
    }
  }

  begin(): void {
    const { batch, budget, window } = this.#context;
    for (let row = 0; row < batch; row++) this.#compact.ensure(row, budget - window);
  }

  park(row: number): void {
    for (const tensor of [this.#prefixLen, this.#tailStart]) tensor.write(Int32Array.of(0), row);
  }

  moveRow(from: number, to: number): void {
    this.#compact.release(to);
    this.#compact.moveRow(from, to);
    for (const tensor of [this.#prefixLen, this.#tailStart]) {
      copy({ source: tensor.rows(from, from + 1), out: tensor.rows(to, to + 1) });
    }
  }

  tokensRead(length: number): number {
    const { budget, reselectEvery } = this.#context;
    return Math.min(length, budget + Math.min(reselectEvery, length) / 2);
  }

  [Symbol.dispose](): void {
    this.#compact.dispose();
    const owned = [this.#prefixLen, this.#tailStart, this.#indices, this.#scores, this.#pooled];
    for (const tensor of owned) tensor.dispose();
  }
}

function compactOptions(
  cache: PagedKvOptions,
  batch: number,
  selectedTokens: number,
): PagedKvOptions {
  // No larger than what is selected needs, in the steps that a page may have.
  const wanted = 2 ** Math.ceil(Math.log2(Math.max(64, selectedTokens)));
  const pageSize = Math.min(cache.pageSize, wanted);
  const pagesPerRow = Math.ceil(selectedTokens / pageSize);
  return {
    ...cache,
    parking: false,
    pageSize,
    batch,
    pages: batch * pagesPerRow,
    maxPagesPerSequence: pagesPerRow,
  };
}

export const snapkv: CachePolicyFactory = {
  name: "snapkv",
  validate({ budget, window, reselectEvery }) {
    if (window < 1 || window >= budget) {
      return (
        `snapkv cache: expected 1 <= window < budget, got window ${window} and budget ${budget}; ` +
        `lower --window-size or raise --draft-budget`
      );
    }
    if (reselectEvery < 1) {
      return `snapkv cache: expected reselect-every >= 1 tokens, got ${reselectEvery}`;
    }
    return undefined;
  },
  bytes({ budget, window }, cache) {
    const scratch = 2 * 4 * cache.kvHeads * cache.maxPagesPerSequence * cache.pageSize;
    const { batch } = cache;
    const selected = Math.max(0, budget - window);
    return pagedKvBytes(compactOptions(cache, batch, selected)) + batch * scratch;
  },
  create: (context) => new SnapKv(context),
};

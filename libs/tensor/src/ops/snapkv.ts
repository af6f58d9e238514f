// SnapKV (Li et al. 2404.14469): the last queries of a context vote for the tokens that a draft
// keeps.

import {
  type Pooling,
  writeGatherKvDesc,
  writeKeepQueriesDesc,
  writeSnapScoreDesc,
  writeSnapSelectDesc,
} from "@magicdec/abi";
import type { KvCacheRef } from "../kv.ts";
import type { Tensor } from "../tensor.ts";

export interface KeepQueriesOp {
  /** (rows, h, d) bf16 */
  readonly q: Tensor;
  /** (rows) i32; -1 is skipped */
  readonly rowSeq: Tensor;
  /** (rows) i32 */
  readonly positions: Tensor;
  /** (b, ring, h, d) bf16 */
  readonly out: Tensor;
}

/** out[s, position % ring] = q[row]. */
export function keepQueries(op: KeepQueriesOp): void {
  const { device } = op.out;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  writeKeepQueriesDesc(ring, slot, op);
  device.check("md_keep_queries", symbols.md_keep_queries(context, ring.address + slot));
}

export interface SnapScoreOp {
  /** (b, ring, h, d) bf16 from keepQueries */
  readonly queries: Tensor;
  /** (b) i32: tokens in the cache */
  readonly lens: Tensor;
  /** (b, max_pages) i32 */
  readonly blockTable: Tensor;
  /** (b, h_kv, max_tokens) f32; entries from lens - window on are not written */
  readonly scores: Tensor;
  readonly cache: KvCacheRef;
  readonly layer: number;
  /** Queries that vote: those at positions lens - window .. lens - 1. */
  readonly window: number;
  readonly scale: number;
}

/**
 * The probability that the voting queries give to each earlier token, summed over these queries and
 * the GQA group.
 */
export function snapScore(op: SnapScoreOp): void {
  const { device } = op.scores;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  writeSnapScoreDesc(ring, slot, op);
  device.check("md_snap_score", symbols.md_snap_score(context, ring.address + slot));
}

export interface SnapSelectOp {
  /** (b, h_kv, max_tokens) f32 */
  readonly scores: Tensor;
  /** (b) i32 */
  readonly lens: Tensor;
  /** (b, h_kv, n) i32, n >= budget - window */
  readonly indices: Tensor;
  /** (b) i32 */
  readonly prefixLen: Tensor;
  /** (b) i32 */
  readonly tailStart: Tensor;
  /** (b, h_kv, max_tokens) f32 scratch */
  readonly pooled: Tensor;
  /** Tokens that the draft keeps: budget - window picked ones, and the last `window`. */
  readonly budget: number;
  readonly window: number;
  /** Width of the pooling along the tokens, odd. */
  readonly kernel: number;
  readonly pooling: Pooling;
}

/**
 * Writes the best pooled tokens of each KV head, ascending; of equal scores the earlier token wins.
 * Where lens <= budget, prefixLen and tailStart are 0: the whole cache is read.
 */
export function snapSelect(op: SnapSelectOp): void {
  const { device } = op.indices;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  writeSnapSelectDesc(ring, slot, op);
  device.check("md_snap_select", symbols.md_snap_select(context, ring.address + slot));
}

export interface GatherKvOp {
  /** (b, h_kv, n) i32 */
  readonly indices: Tensor;
  /** (b) i32 */
  readonly prefixLen: Tensor;
  /** (b, max_pages) i32 */
  readonly sourceTable: Tensor;
  /** (b, max_pages) i32 */
  readonly outTable: Tensor;
  readonly source: KvCacheRef;
  readonly out: KvCacheRef;
  readonly sourceLayer: number;
  readonly outLayer: number;
}

/** Token indices[s, head, i] of `source` becomes token i of `out`, for i < prefixLen[s]. */
export function gatherKv(op: GatherKvOp): void {
  const { device } = op.indices;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  writeGatherKvDesc(ring, slot, op);
  device.check("md_gather_kv", symbols.md_gather_kv(context, ring.address + slot));
}

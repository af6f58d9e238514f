import type { AttentionView, PagedKv, QueryRing } from "@magicdec/cache";
import {
  attention,
  type Communicator,
  embedding,
  linear,
  rmsNorm,
  ropeAppend,
  ropeTable,
  type Tensor,
} from "@magicdec/tensor";
import type { ModelConfig } from "./config.ts";
import type { ModelWeights } from "./weights.ts";
import type { Workspace } from "./workspace.ts";

/** New tokens of some sequences, as device arrays; b sequences, `rows` new tokens in all. */
export interface ForwardBatch {
  readonly rows: number;
  /** (b, r) i32 token ids, read with a row stride. */
  readonly ids: Tensor;
  /** Elements from one sequence's ids to the next. */
  readonly idsStride: number;
  /** (rows) i32 */
  readonly positions: Tensor;
  /** (rows) i32 block-table row of each token; -1 is padding. */
  readonly rowSeq: Tensor;
  /** (b + 1) i32 */
  readonly qStart: Tensor;
  /** (b) i32, new tokens included. */
  readonly kvLen: Tensor;
  /** The cache that takes the new K and V; its table's first b rows are the sequences. */
  readonly cache: PagedKv;
}

export interface ForwardOptions {
  /** What attention reads of each layer; everything where absent. */
  readonly view?: ((layer: number) => AttentionView) | undefined;
  /** In-cache position limit of the query against the sinks (CachePolicy.sinkViewTokens). */
  readonly sinkViewTokens?: number | undefined;
  /** Keeps the queries of this pass for a scoring policy; `rowSeq` (rows) i32 has -1 at rows that are not kept. */
  readonly keep?: { readonly ring: QueryRing; readonly rowSeq: Tensor } | undefined;
  /** (m) i32 rows whose logits are wanted; all rows where absent. */
  readonly logitRows?: Tensor | undefined;
  /** (m, vocab) f32; absent: no logits (a prefill chunk that is not the last). */
  readonly logits?: Tensor | undefined;
}

/**
 * The one forward for prefill, decode, draft and verify: enqueues everything, reads nothing back, allocates nothing on the device.
 * Which it is follows from the arrays: many rows of one sequence, one row each, gamma + 1 rows each.
 */
export function forward(
  config: ModelConfig,
  weights: ModelWeights,
  workspace: Workspace,
  comm: Communicator,
  batch: ForwardBatch,
  options: ForwardOptions = {},
): void {
  const { rows, positions, rowSeq, qStart, kvLen, cache } = batch;
  const { headDim, rmsNormEps: eps } = config;
  const ws = workspace.forRows(rows);
  const blockTable = cache.blockTable.rows(0, kvLen.elements);
  const scale = 1 / Math.sqrt(headDim);
  const sinkTokens = options.sinkViewTokens ?? 0;
  const sink = sinkTokens > 0;

  embedding({ table: weights.embedding, ids: batch.ids, idsStride: batch.idsStride, out: ws.x });
  const inverse = weights.inverseFrequencies;
  ropeTable({ positions, invFreq: inverse, out: ws.rope, scale: 1, viewTokens: 0 });
  if (sink) {
    const viewTokens = sinkTokens;
    ropeTable({ positions, invFreq: inverse, out: ws.ropeSink, scale: 1, viewTokens });
  }
  const sinkRope = sink ? { ropeSink: ws.ropeSink, qSink: ws.qSink } : {};
  const sinkQuery = sink ? { qSink: ws.qSink } : {};

  for (const [layer, w] of weights.layers.entries()) {
    rmsNorm({ x: ws.x, weight: w.attentionNorm, out: ws.normed, eps });
    linear({ x: ws.normed, weight: w.qkv, bias: w.qkvBias, out: ws.qkv });
    ropeAppend({
      qkv: ws.qkv,
      rope: ws.rope,
      q: ws.q,
      ...sinkRope,
      rowSeq,
      positions,
      blockTable,
      cache: cache.ref,
      layer,
    });
    options.keep?.ring.keep(layer, ws.q, options.keep.rowSeq, positions);
    attention({
      q: ws.q,
      ...sinkQuery,
      out: ws.attended,
      qStart,
      kvLen,
      blockTable,
      workspace: workspace.attention,
      cache: cache.ref,
      layer,
      scale,
      ...options.view?.(layer),
    });
    linear({ x: ws.attendedRows, weight: w.output, bias: w.outputBias, residual: ws.x, out: ws.x });
    comm.allReduce(ws.x);
    rmsNorm({ x: ws.x, weight: w.mlpNorm, out: ws.normed, eps });
    const { gateUp, gateUpBias } = w;
    linear({ x: ws.normed, weight: gateUp, bias: gateUpBias, out: ws.inner, epilogue: "silu_mul" });
    linear({ x: ws.inner, weight: w.down, bias: w.downBias, residual: ws.x, out: ws.x });
    comm.allReduce(ws.x);
  }

  if (options.logits === undefined) return;
  const last = options.logitRows;
  const wanted = last === undefined ? ws : workspace.forRows(last.elements);
  if (last !== undefined) {
    embedding({ table: ws.x, ids: last, idsStride: 1, out: wanted.picked });
  }
  const x = last === undefined ? ws.x : wanted.picked;
  rmsNorm({ x, weight: weights.finalNorm, out: wanted.normed, eps });
  linear({ x: wanted.normed, weight: weights.lmHead, out: options.logits });
}

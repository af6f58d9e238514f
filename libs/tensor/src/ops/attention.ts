// Position-dependent ops: rotation, the append to the paged cache, and attention over it.

import {
  type AttentionFields,
  type RopeTableFields,
  writeAttentionDesc,
  writePositionsDesc,
  writeRopeAppendDesc,
  writeRopeTableDesc,
} from "@magicdec/abi";
import type { Device } from "../device.ts";
import type { DType } from "../dtype.ts";
import type { KvCacheRef, KvGeometry } from "../kv.ts";
import type { Tensor } from "../tensor.ts";

export interface PositionsOp {
  /** (b) i32: tokens whose KV is exact */
  readonly lens: Tensor;
  /** (b * r) i32 */
  readonly positions: Tensor;
  /** (b) i32 */
  readonly kvLen: Tensor;
  readonly offset: number;
}

/** positions[s * r + i] = lens[s] + offset + i, and kvLen[s] = lens[s] + offset + r. */
export function positions(op: PositionsOp): void {
  const { device } = op.positions;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  writePositionsDesc(ring, slot, op);
  device.check("md_positions", symbols.md_positions(context, ring.address + slot));
}

export interface RopeTableOp {
  /** (rows) i32 */
  readonly positions: Tensor;
  /** (d / 2) f32 */
  readonly invFreq: Tensor;
  /** (rows, d) f32: d / 2 cosines, then d / 2 sines */
  readonly out: Tensor;
  /** 1 by default */
  readonly scale?: number | undefined;
  /**
   * Positions are clamped to this - 1: the in-cache positions of a streaming view of that many
   * tokens. 0, the default, does not clamp.
   */
  readonly viewTokens?: number | undefined;
}

/** cos and sin of position * invFreq of each row, times scale. */
export function ropeTable(op: RopeTableOp): void {
  const { device } = op.out;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  const { scale = 1, viewTokens = 0 } = op;
  writeRopeTableDesc(ring, slot, isFullTable(op) ? op : { ...op, scale, viewTokens });
  device.check("md_rope_table", symbols.md_rope_table(context, ring.address + slot));
}

function isFullTable(op: RopeTableOp): op is RopeTableOp & RopeTableFields {
  return op.scale !== undefined && op.viewTokens !== undefined;
}

export interface RopeAppendOp {
  /** (rows, (h + 2 h_kv) * d) bf16 */
  readonly qkv: Tensor;
  /** (rows, d) f32 from ropeTable */
  readonly rope: Tensor;
  /** (rows, d) f32: the rotation of the query that meets the sinks; with qSink */
  readonly ropeSink?: Tensor | undefined;
  /** (rows, h, d) bf16 */
  readonly q: Tensor;
  /** (rows, h, d) bf16 */
  readonly qSink?: Tensor | undefined;
  /** (rows) i32: sequence of each row; -1 is a padding row, which is skipped */
  readonly rowSeq: Tensor;
  /** (rows) i32: position of each row, which is also its place in the cache */
  readonly positions: Tensor;
  /** (b, max_pages) i32 */
  readonly blockTable: Tensor;
  readonly cache: KvCacheRef;
  readonly layer: number;
}

/**
 * Splits qkv, rotates q and k (half-split pairs, as in Hugging Face Llama), and appends k and v to
 * the paged cache.
 */
export function ropeAppend(op: RopeAppendOp): void {
  const { device } = op.q;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  writeRopeAppendDesc(ring, slot, op);
  device.check("md_rope_append", symbols.md_rope_append(context, ring.address + slot));
}

/**
 * Row i of sequence s stands at p = kvLen[s] - (rows of s) + i and reads tokens [start, p] of the
 * cache, besides a prefix:
 *  - nothing else given: start = 0 (full attention);
 *  - window > 0 (a view): where p + 1 > sinks + window, start = p + 1 - window, and tokens [0,
 *    sinks) are read with qSink (q where absent);
 *  - prefixCache, prefixTable, prefixLen, tailStart: start = tailStart[s], and tokens [0,
 *    prefixLen[s]) of the prefix cache;
 *  - indices, prefixLen, tailStart: start = tailStart[s], and tokens indices[s, kv head, 0 ..
 *    prefixLen[s]) of the cache.
 */
export interface AttentionOp {
  /** (rows, h, d) bf16 */
  readonly q: Tensor;
  /** (rows, h, d) bf16 */
  readonly qSink?: Tensor | undefined;
  /** (rows, h, d) bf16 */
  readonly out: Tensor;
  /** (b + 1) i32: where the rows of each sequence start */
  readonly qStart: Tensor;
  /** (b) i32: tokens in the cache, the new rows included */
  readonly kvLen: Tensor;
  /** (b, max_pages) i32 */
  readonly blockTable: Tensor;
  /** (b, max_prefix_pages) i32 */
  readonly prefixTable?: Tensor | undefined;
  /** (b) i32 */
  readonly prefixLen?: Tensor | undefined;
  /** (b) i32 */
  readonly tailStart?: Tensor | undefined;
  /** (b, h_kv, n) i32, ascending */
  readonly indices?: Tensor | undefined;
  /** (attentionWorkspaceBytes) u8 */
  readonly workspace: Tensor;
  readonly cache: KvCacheRef;
  readonly prefixCache?: KvCacheRef | undefined;
  readonly layer: number;
  readonly prefixLayer?: number | undefined;
  readonly sinks?: number | undefined;
  readonly window?: number | undefined;
  /** 1 / sqrt(d), as a rule */
  readonly scale: number;
}

/** Causal attention of the new rows over a paged cache that holds their own k and v already. */
export function attention(op: AttentionOp): void {
  const { device } = op.out;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  writeAttentionDesc(ring, slot, isFullAttention(op) ? op : withDefaults(op));
  device.check("md_attention", symbols.md_attention(context, ring.address + slot));
}

/** Bytes of workspace that `attention` needs at most for these shapes, whatever the lengths are. */
export function attentionWorkspaceBytes(op: Omit<AttentionOp, "workspace">): number {
  const { device } = op.out;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  const out = ring.take();
  writeAttentionDesc(ring, slot, { ...withDefaults(op), workspace: noWorkspace });
  const status = symbols.md_attention_workspace(context, ring.address + slot, ring.address + out);
  device.check("md_attention_workspace", status);
  return ring.f64[out >>> 3] as number;
}

/** Shapes of an attention that has no tensors yet. */
export interface AttentionShape {
  readonly rows: number;
  readonly heads: number;
  readonly batch: number;
  /** Columns of the block table. */
  readonly maxPages: number;
  readonly cache: KvGeometry;
  /** Whether a prefix cache of the same geometry and table is read before the tail. */
  readonly prefix: boolean;
}

/** The same before anything is allocated, for memory plans. */
export function plannedAttentionWorkspaceBytes(device: Device, shape: AttentionShape): number {
  const { rows, heads, batch, maxPages, cache, prefix } = shape;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  const out = ring.take();
  const q = planned([rows, heads, cache.headDim], "bf16");
  const perSequence = planned([batch], "i32");
  const blockTable = planned([batch, maxPages], "i32");
  const pool = { ...cache, data: { address: 0 } };
  writeAttentionDesc(ring, slot, {
    q,
    out: q,
    qStart: planned([batch + 1], "i32"),
    kvLen: perSequence,
    blockTable,
    ...(prefix && {
      prefixCache: pool,
      prefixTable: blockTable,
      prefixLen: perSequence,
      tailStart: perSequence,
    }),
    workspace: noWorkspace,
    cache: pool,
    layer: 0,
    prefixLayer: 0,
    sinks: 0,
    window: 0,
    scale: 1,
  });
  const status = symbols.md_attention_workspace(context, ring.address + slot, ring.address + out);
  device.check("md_attention_workspace", status);
  return ring.f64[out >>> 3] as number;
}

function planned(shape: readonly number[], dtype: DType) {
  return { address: 0, shape, dtype };
}

const noWorkspace = { address: 0, shape: [], dtype: "u8" } as const;

function isFullAttention(op: AttentionOp): op is AttentionOp & AttentionFields {
  return op.prefixLayer !== undefined && op.sinks !== undefined && op.window !== undefined;
}

function withDefaults<T extends Omit<AttentionOp, "workspace">>(op: T) {
  const { prefixLayer = 0, sinks = 0, window = 0 } = op;
  return { ...op, prefixLayer, sinks, window };
}

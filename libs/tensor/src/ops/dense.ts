// The dense ops of a transformer layer. b sequences, r new rows of each, rows = b * r.
//
// An op writes its descriptor into native memory and enqueues. An object that names every scalar is
// written as it stands; for one that leaves some out, a complete copy is made first.

import {
  type Epilogue,
  writeAddDesc,
  writeCastDesc,
  writeEmbeddingDesc,
  writeLinearDesc,
  writeRmsNormDesc,
  writeSiluMulDesc,
} from "@magicdec/abi";
import type { Tensor } from "../tensor.ts";
import type { PackedWeight } from "../weight.ts";

export interface EmbeddingOp {
  /** (v, n) bf16 */
  readonly table: Tensor;
  /**
   * (b, r) i32; element (i, j) is at i * idsStride + j, so that a range of columns of a wider array
   * can be read
   */
  readonly ids: Tensor;
  /** (b * r, n) bf16 */
  readonly out: Tensor;
  /** r by default */
  readonly idsStride?: number | undefined;
}

/** out[i] = table[ids[i]]. */
export function embedding(op: EmbeddingOp): void {
  const { device } = op.out;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  const { idsStride = op.ids.shape[1] ?? 1 } = op;
  writeEmbeddingDesc(ring, slot, hasIdsStride(op) ? op : { ...op, idsStride });
  device.check("md_embedding", symbols.md_embedding(context, ring.address + slot));
}

function hasIdsStride(op: EmbeddingOp): op is EmbeddingOp & { idsStride: number } {
  return op.idsStride !== undefined;
}

export interface RmsNormOp {
  /** (rows, n) bf16 */
  readonly x: Tensor;
  /** (rows, n) bf16, added to x in place first */
  readonly delta?: Tensor | undefined;
  /** (n) bf16 */
  readonly weight: Tensor;
  /** (rows, n) bf16 */
  readonly out: Tensor;
  readonly eps: number;
}

/** out = x * rsqrt(mean(x^2) + eps) * weight, after x += delta where delta is given. */
export function rmsNorm(op: RmsNormOp): void {
  const { device } = op.out;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  writeRmsNormDesc(ring, slot, op);
  device.check("md_rms_norm", symbols.md_rms_norm(context, ring.address + slot));
}

export interface LinearOp {
  /** (rows, k) bf16 */
  readonly x: Tensor;
  readonly weight: PackedWeight;
  /** (n) bf16 */
  readonly bias?: Tensor | undefined;
  /** (rows, n) bf16; may be `out` itself */
  readonly residual?: Tensor | undefined;
  /** (rows, n) bf16 or f32; (rows, n / 2) with the epilogue silu_mul */
  readonly out: Tensor;
  /** "silu_mul": weight rows hold gate, then up, and out = silu(gate) * up. "none" by default. */
  readonly epilogue?: Epilogue | undefined;
}

/**
 * out = epilogue(x weight^T + bias) + residual. The bits of a row do not depend on the number of
 * rows.
 */
export function linear(op: LinearOp): void {
  const { device } = op.out;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  writeLinearDesc(ring, slot, hasEpilogue(op) ? op : { ...op, epilogue: "none" });
  device.check("md_linear", symbols.md_linear(context, ring.address + slot));
}

function hasEpilogue(op: LinearOp): op is LinearOp & { epilogue: Epilogue } {
  return op.epilogue !== undefined;
}

export interface SiluMulOp {
  /** (rows, 2 n) bf16: gate, then up */
  readonly gateUp: Tensor;
  /** (rows, n) bf16 */
  readonly out: Tensor;
}

/** out = silu(gate) * up. */
export function siluMul(op: SiluMulOp): void {
  const { device } = op.out;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  writeSiluMulDesc(ring, slot, op);
  device.check("md_silu_mul", symbols.md_silu_mul(context, ring.address + slot));
}

export interface AddOp {
  /** bf16, all three of one shape; out may be a or b */
  readonly a: Tensor;
  readonly b: Tensor;
  readonly out: Tensor;
}

/** out = a + b. */
export function add(op: AddOp): void {
  const { device } = op.out;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  writeAddDesc(ring, slot, op);
  device.check("md_add", symbols.md_add(context, ring.address + slot));
}

export interface CastOp {
  readonly source: Tensor;
  /** of the same shape; bf16 to f32, or f32 to bf16 by nearest even */
  readonly out: Tensor;
}

/** out = source in another dtype. */
export function cast(op: CastOp): void {
  const { device } = op.out;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  writeCastDesc(ring, slot, op);
  device.check("md_cast", symbols.md_cast(context, ring.address + slot));
}

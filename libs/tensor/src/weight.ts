// Weights of linear layers, in the order of bytes that the backend reads fastest.

import { StatusError, WeightFormat, writePackDesc } from "@magicdec/abi";
import type { Device } from "./device.ts";
import { type DType, elementBytes } from "./dtype.ts";
import type { MappedFile } from "./file.ts";
import { countElements, describe, type Tensor } from "./tensor.ts";

/** A linear layer's weight, logically (n, k). */
export interface PackedWeight {
  readonly data: Tensor;
  readonly n: number;
  readonly k: number;
  readonly format: WeightFormat;
}

/** Bytes of an (n, k) weight in the device's packed form. */
export function packedWeightBytes(device: Device, n: number, k: number): number {
  const { ring } = device;
  const out = ring.take();
  const to = ring.address + out;
  const format = WeightFormat.packed_bf16;
  device.check("md_weight_bytes", device.symbols.md_weight_bytes(device.context, format, n, k, to));
  return ring.f64[out >>> 3] as number;
}

/** An (n, k) weight of zeros, to be filled by weightPack; the caller disposes of `data`. */
export function allocWeight(device: Device, n: number, k: number): PackedWeight {
  const data = device.alloc([packedWeightBytes(device, n, k)], "u8");
  return { data, n, k, format: "packed_bf16" };
}

/**
 * Rows of a row-major weight: from a tensor, or `shape` elements at byte `offset` of the data of a
 * mapped file (after its header).
 */
export type PackSource =
  | { readonly source: Tensor }
  | {
      readonly file: MappedFile;
      readonly offset: number;
      readonly shape: readonly [rows: number, k: number];
      readonly dtype: DType;
    };

/**
 * Packs `rows` rows of bf16 or f32 into rows [rowOffset, rowOffset + rows) of the weight, so that
 * q, k and v can share one.
 */
export function weightPack(
  op: PackSource & { readonly weight: PackedWeight; readonly rowOffset?: number | undefined },
): void {
  const { weight, rowOffset = 0 } = op;
  const { device } = weight.data;
  const { ring } = device;
  const slot = ring.take();
  if ("source" in op) {
    writePackDesc(ring, slot, { source: op.source, offset: 0, weight, rowOffset, file: 0 });
  } else {
    const { file, offset, shape, dtype } = op;
    requireOffset(offset, shape, dtype);
    const source = { address: 0, shape, dtype };
    writePackDesc(ring, slot, { source, offset, weight, rowOffset, file: file.id });
  }
  const status = device.symbols.md_weight_pack(device.context, ring.address + slot);
  device.check("md_weight_pack", status);
}

function requireOffset(offset: number, shape: readonly number[], dtype: DType): void {
  const bytes = countElements("weightPack", shape) * elementBytes(dtype);
  if (Number.isInteger(offset) && offset >= 0 && offset + bytes <= Number.MAX_SAFE_INTEGER) return;
  throw new StatusError(
    "invalid_argument",
    "weightPack",
    `weightPack: expected a whole byte offset for ${describe(dtype, shape)}, got ${offset}`,
  );
}

// The typed array that holds each element type on the host.

import type { DType } from "@magicdec/abi";

export type { DType };

export type TypedArray =
  Float32Array | Float64Array | Int32Array | Uint32Array | Uint16Array | Uint8Array;

interface HostArray {
  readonly name: string;
  readonly BYTES_PER_ELEMENT: number;
  new (length: number): TypedArray;
  new (buffer: ArrayBuffer, byteOffset: number, length: number): TypedArray;
}

/** bf16 is kept as its bits. */
export const hostArrays: Readonly<Record<DType, HostArray>> = {
  f32: Float32Array,
  bf16: Uint16Array,
  i32: Int32Array,
  u32: Uint32Array,
  u8: Uint8Array,
  f64: Float64Array,
};

/** Bytes of one element. */
export function elementBytes(dtype: DType): number {
  return hostArrays[dtype].BYTES_PER_ELEMENT;
}

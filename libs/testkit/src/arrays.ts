// Short ways between numbers and tensors.

import { type Device, fromBf16, type Tensor } from "@magicdec/tensor";

/** What a tensor holds, as numbers whatever its type. */
export function readNumbers(tensor: Tensor): number[] {
  const data = tensor.read();
  return Array.from(tensor.dtype === "bf16" ? fromBf16(data as Uint16Array) : data);
}

/** A one-dimensional i32 tensor. */
export function int32(device: Device, values: readonly number[]): Tensor {
  return device.from(Int32Array.from(values), [values.length], "i32");
}

/** A bf16 tensor of numbers, rounded to nearest. */
export function bf16(device: Device, values: ArrayLike<number>, shape: readonly number[]): Tensor {
  return device.from(Float32Array.from(values), shape, "bf16");
}

/** Elements [start, end) of each row of a row-major array, joined. */
export function columns(
  data: ArrayLike<number>,
  width: number,
  start: number,
  end: number,
): number[] {
  const out: number[] = [];
  for (let row = 0; row < data.length; row += width) {
    for (let i = row + start; i < row + end; i++) out.push(data[i] as number);
  }
  return out;
}

/** Rows [start, end) of a row-major array. */
export function rowsOf(
  data: ArrayLike<number>,
  width: number,
  start: number,
  end: number,
): number[] {
  return Array.prototype.slice.call(data, start * width, end * width) as number[];
}

/** `count` times the same value. */
export function repeat<T>(value: T, count: number): T[] {
  return Array.from({ length: count }, () => value);
}

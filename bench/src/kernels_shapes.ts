// The layer shapes that are measured, and what all cases need to make their data.

import type { Device, Tensor } from "@magicdec/tensor";

export interface LayerShape {
  readonly name: string;
  readonly hidden: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly intermediate: number;
  readonly vocab: number;
}

export const layerShapes: readonly LayerShape[] = [
  {
    name: "embedded-draft",
    hidden: 128,
    heads: 2,
    kvHeads: 2,
    headDim: 64,
    intermediate: 384,
    vocab: 4096,
  },
  {
    name: "embedded-target",
    hidden: 256,
    heads: 4,
    kvHeads: 4,
    headDim: 64,
    intermediate: 768,
    vocab: 4096,
  },
  {
    name: "smollm2-135m",
    hidden: 576,
    heads: 9,
    kvHeads: 3,
    headDim: 64,
    intermediate: 1536,
    vocab: 49152,
  },
  {
    name: "llama-3.2-1b",
    hidden: 2048,
    heads: 32,
    kvHeads: 8,
    headDim: 64,
    intermediate: 8192,
    vocab: 128256,
  },
  {
    name: "llama-3.1-8b",
    hidden: 4096,
    heads: 32,
    kvHeads: 8,
    headDim: 128,
    intermediate: 14336,
    vocab: 128256,
  },
];

/**
 * Data of this size comes from memory: several times the caches that two cores of a server have.
 */
export const streamBytes = 192e6;

/** Above this a case would spend longer on its set-up than on its measurement. */
const mostCopies = 256;

/** How many copies of `bytes` make a stream, and whether they do. */
export function copiesFor(bytes: number): { copies: number; streams: boolean } {
  const wanted = Math.ceil(streamBytes / bytes);
  const copies = Math.min(wanted, mostCopies);
  return { copies, streams: copies === wanted };
}

const tileElements = 1 << 16;
let tile: Float32Array | undefined;

/**
 * Normals, drawn once and repeated: drawing a gigabyte of them would take longer than any
 * measurement.
 */
export function normals(count: number, scale = 1): Float32Array {
  tile ??= Float32Array.from({ length: tileElements }, () => {
    const radius = Math.sqrt(-2 * Math.log(1 - Math.random()));
    return radius * Math.cos(2 * Math.PI * Math.random());
  });
  const out = new Float32Array(count);
  for (let i = 0; i < count; i += tileElements) out.set(tile.subarray(0, count - i), i);
  if (scale !== 1) for (let i = 0; i < count; i++) out[i] = scale * (out[i] as number);
  return out;
}

/** A bf16 tensor of normals, freed with the stack. */
export function randomBf16(
  device: Device,
  stack: DisposableStack,
  shape: readonly number[],
): Tensor {
  const count = shape.reduce((product, size) => product * size, 1);
  return stack.use(device.from(normals(count), shape, "bf16"));
}

/** An i32 tensor of these values, freed with the stack. */
export function int32(
  device: Device,
  stack: DisposableStack,
  values: readonly number[],
  shape: readonly number[] = [values.length],
): Tensor {
  return stack.use(device.from(Int32Array.from(values), shape, "i32"));
}

/** `count` times the same value. */
export function repeat<T>(value: T, count: number): T[] {
  return Array.from({ length: count }, () => value);
}

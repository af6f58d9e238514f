// The paged KV store as ops see it.

import type { Device } from "./device.ts";
import type { Tensor } from "./tensor.ts";

/**
 * Logically (layers, pages, 2, kvHeads, pageSize, headDim) bf16. The order inside a page is the
 * backend's own: only ops read and write it.
 */
export interface KvCacheRef {
  readonly data: Tensor;
  readonly layers: number;
  readonly pages: number;
  readonly pageSize: number;
  readonly kvHeads: number;
  readonly headDim: number;
}

export type KvGeometry = Omit<KvCacheRef, "data">;

/** Bytes of the store. */
export function kvCacheBytes(geometry: KvGeometry): number {
  const { layers, pages, pageSize, kvHeads, headDim } = geometry;
  return layers * pages * 2 * kvHeads * pageSize * headDim * 2;
}

/** A zeroed store; the caller disposes of `data`. */
export function allocKvCache(device: Device, geometry: KvGeometry): KvCacheRef {
  const { layers, pages, pageSize, kvHeads, headDim } = geometry;
  const data = device.alloc([layers * pages * 2, kvHeads, pageSize, headDim], "bf16");
  return { data, layers, pages, pageSize, kvHeads, headDim };
}

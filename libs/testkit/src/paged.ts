// Paged caches with known contents. The order of bytes inside a page is the backend's own, so
// contents go in through ropeAppend, with a rotation by nothing.

import {
  allocKvCache,
  type Device,
  type KvCacheRef,
  ropeAppend,
  type Tensor,
} from "@magicdec/tensor";
import { bf16 } from "./arrays.ts";
import type { Random } from "./random.ts";
import type { SequenceKv } from "./reference/attention.ts";

/** Random keys and values that bf16 holds exactly. */
export function randomKv(
  random: Random,
  tokens: number,
  kvHeads: number,
  headDim: number,
): SequenceKv {
  const count = tokens * kvHeads * headDim;
  return { k: random.bf16(count), v: random.bf16(count), kvHeads, headDim };
}

export function tokensOf(kv: SequenceKv): number {
  return kv.k.length / (kv.kvHeads * kv.headDim);
}

export interface PagedOptions {
  pageSize?: number | undefined;
  layers?: number | undefined;
  /** The layer that gets the contents; the last by default. */
  layer?: number | undefined;
  /** Tokens that each sequence must have room for, where that is more than it has. */
  capacity?: number | undefined;
}

/** A cache whose pages are dealt out in random order, with its block table (b, max_pages) i32. */
export class PagedCache implements Disposable {
  readonly cache: KvCacheRef;
  readonly blockTable: Tensor;
  readonly layer: number;

  private constructor(cache: KvCacheRef, blockTable: Tensor, layer: number) {
    this.cache = cache;
    this.blockTable = blockTable;
    this.layer = layer;
  }

  /**
   * Stores the contents of each sequence. Other places hold large finite garbage, and pages that no
   * sequence has are -1 in the table.
   */
  static build(
    device: Device,
    random: Random,
    contents: readonly SequenceKv[],
    options: PagedOptions = {},
  ): PagedCache {
    const { pageSize = 64, layers = 1, layer = layers - 1, capacity = 1 } = options;
    const [first] = contents;
    if (first === undefined)
      throw new Error("PagedCache: expected at least one sequence, got none");
    const { kvHeads, headDim } = first;
    const counts = contents.map((kv) => Math.ceil(Math.max(tokensOf(kv), capacity) / pageSize));
    const pages = counts.reduce((sum, count) => sum + count, 0) + 1;
    const cache = allocKvCache(device, { layers, pages, pageSize, kvHeads, headDim });
    cache.data.fill(0x46);
    const table = dealPages(random, counts, pages);
    const shape = [contents.length, Math.max(...counts)];
    const paged = new PagedCache(cache, device.from(table, shape, "i32"), layer);
    contents.forEach((kv, sequence) => paged.append(sequence, kv, 0));
    return paged;
  }

  /** Stores the tokens of `kv` at positions from `start` on. */
  append(sequence: number, kv: SequenceKv, start: number): void {
    const { device } = this.blockTable;
    const { kvHeads, headDim } = kv;
    const width = kvHeads * headDim;
    const rows = tokensOf(kv);
    if (rows === 0) return;
    const qkv = new Float32Array(rows * 3 * width);
    for (let row = 0; row < rows; row++) {
      for (let i = 0; i < width; i++) {
        qkv[row * 3 * width + width + i] = kv.k[row * width + i] as number;
        qkv[row * 3 * width + 2 * width + i] = kv.v[row * width + i] as number;
      }
    }
    const positions = Int32Array.from({ length: rows }, (_, row) => start + row);
    using qkvTensor = bf16(device, qkv, [rows, 3 * width]);
    using rope = device.from(unrotated(rows, headDim), [rows, headDim], "f32");
    using q = device.alloc([rows, kvHeads, headDim], "bf16");
    using rowSeq = device.from(new Int32Array(rows).fill(sequence), [rows], "i32");
    using at = device.from(positions, [rows], "i32");
    const { cache, blockTable, layer } = this;
    ropeAppend({ qkv: qkvTensor, rope, q, rowSeq, positions: at, blockTable, cache, layer });
  }

  [Symbol.dispose](): void {
    this.cache.data.dispose();
    this.blockTable.dispose();
  }
}

/** Rows of a rope table that leave q and k as they are: cos 1, sin 0. */
export function unrotated(rows: number, headDim: number): Float32Array {
  const out = new Float32Array(rows * headDim);
  for (let row = 0; row < rows; row++) {
    out.fill(1, row * headDim, row * headDim + headDim / 2);
  }
  return out;
}

function dealPages(random: Random, counts: readonly number[], pages: number): Int32Array {
  const free = random.permutation(pages);
  const width = Math.max(...counts);
  const table = new Int32Array(counts.length * width).fill(-1);
  counts.forEach((count, sequence) => {
    for (let i = 0; i < count; i++) table[sequence * width + i] = free.pop() ?? -1;
  });
  return table;
}

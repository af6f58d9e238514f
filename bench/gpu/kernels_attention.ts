// Attention and the append over one large KV pool, at the batches and lengths that are published.

import {
  type AttentionOp,
  attention,
  attentionWorkspaceBytes,
  type Device,
  type KvCacheRef,
  ropeAppend,
  type Tensor,
} from "@magicdec/tensor";
import { standardPageSize } from "@magicdec/engine";
import type { KernelCase, PreparedKernel } from "../src/kernels_measure.ts";
import { int32, randomBf16, repeat } from "../src/kernels_shapes.ts";
import { LayerPool } from "./pool.ts";

interface Heads {
  readonly model: string;
  readonly kvHeads: number;
  readonly group: number;
  readonly headDim: number;
}

const llama8b: Heads = { model: "8b", kvHeads: 8, group: 4, headDim: 128 };
const llama1b: Heads = { model: "1b", kvHeads: 8, group: 4, headDim: 64 };

const largestCellTokens = 32 * 16384;
const pageSize = standardPageSize({ backend: "cuda" });
const sinks = 16;

const tokenBytes = ({ kvHeads, headDim }: Heads) => 2 * 2 * kvHeads * headDim;

/**
 * What each cell's caches are views of: 34 GB. A graph goes through its layers, so that no call finds what an earlier one
 * left in the second-level cache.
 */
const pool = new LayerPool(largestCellTokens * tokenBytes(llama8b), 16, 1);

/** Context lengths of a batch, and what each sequence reads of it where that is less. */
interface Cell {
  readonly label: string;
  readonly lengths: readonly number[];
  readonly readTokens?: number;
}

const square = (b: number, s: number): Cell => ({ label: `${b}x${s}`, lengths: repeat(s, b) });

const decodeCells: readonly Cell[] = [
  square(32, 16384),
  square(16, 32768),
  square(4, 131072),
  square(1, 16384),
  square(1, 131072),
];
const ragged: Cell = { label: "1x100000+31x4000", lengths: [100000, ...repeat(4000, 31)] };

interface Paged {
  readonly cache: KvCacheRef;
  readonly blockTable: Tensor;
}

const pagesOf = (length: number) => Math.ceil(length / pageSize);

/** The pool as a cache for this batch, its pages in an order that nothing foresees. */
function pagedCache(device: Device, stack: DisposableStack, heads: Heads, cell: Cell): Paged {
  const { kvHeads, headDim } = heads;
  const pages = cell.lengths.reduce((sum, length) => sum + pagesOf(length), 0);
  const { memory, layers } = pool.get(device);
  const elements = [layers * pages * 2, kvHeads, pageSize, headDim];
  const data = memory.view(elements, { dtype: "bf16" });
  const columns = Math.max(...cell.lengths.map(pagesOf));
  const table = repeat(-1, cell.lengths.length * columns);
  let next = 0;
  for (const [row, length] of cell.lengths.entries()) {
    for (let i = 0; i < pagesOf(length); i++) table[row * columns + i] = scattered(next++, pages);
  }
  const blockTable = int32(device, stack, table, [cell.lengths.length, columns]);
  return { cache: { data, layers, pages, pageSize, kvHeads, headDim }, blockTable };
}

/** A permutation of 0 .. count - 1. */
function scattered(i: number, count: number): number {
  const gcd = (a: number, b: number): number => (b === 0 ? a : gcd(b, a % b));
  let stride = Math.max(Math.floor(count * 0.618), 1);
  while (gcd(stride, count) !== 1) stride++;
  return (i * stride) % count;
}

type Extra = (device: Device, stack: DisposableStack, cell: Cell) => Partial<AttentionOp>;

interface Shape {
  readonly heads: Heads;
  readonly cell: Cell;
  /** New rows of each sequence. */
  readonly rows: number;
  readonly label: string;
  readonly extra?: Extra;
  /** Layers that one graph goes through; all of the pool's by default. */
  readonly copies?: number;
}

/** Random queries: the end of the pool, so that the host need not draw those of a whole prompt. */
function queries(device: Device, shape: readonly number[]): Tensor {
  const { memory } = pool.get(device);
  const bytes = 2 * shape.reduce((product, size) => product * size, 1);
  return memory.view(shape, { dtype: "bf16", byteOffset: memory.bytes - bytes });
}

function attentionCase({ heads, cell, rows, label, extra, copies }: Shape): KernelCase {
  const b = cell.lengths.length;
  const queryHeads = heads.kvHeads * heads.group;
  const read = cell.lengths.map((length) => Math.min(length, cell.readTokens ?? length));
  const tokens = read.reduce((sum, length) => sum + length, 0);
  // Row i of `rows` sees all but the rows after it.
  const pairs = rows * tokens - (b * rows * (rows - 1)) / 2;
  return {
    op: "attention",
    shape: `${label} ${cell.label} ${heads.model}`,
    bytes: tokens * tokenBytes(heads) + 2 * b * rows * queryHeads * heads.headDim * 2,
    flops: 4 * pairs * queryHeads * heads.headDim,
    memoryBytes: pool.layerBytes,
    prepare(device, stack): PreparedKernel {
      const shapeQ = [b * rows, queryHeads, heads.headDim];
      const op = {
        q: queries(device, shapeQ),
        out: stack.use(device.alloc(shapeQ, "bf16")),
        qStart: int32(
          device,
          stack,
          Array.from({ length: b + 1 }, (_, s) => s * rows),
        ),
        kvLen: int32(device, stack, cell.lengths),
        ...pagedCache(device, stack, heads, cell),
        layer: 0,
        prefixLayer: 0,
        sinks: 0,
        window: 0,
        scale: 1 / Math.sqrt(heads.headDim),
        ...extra?.(device, stack, cell),
      };
      const workspace = stack.use(device.alloc([attentionWorkspaceBytes(op)], "u8"));
      const count = copies ?? op.cache.layers;
      const ops = Array.from({ length: count }, (_, layer) => ({ ...op, workspace, layer }));
      const enqueue = (i: number) => attention(ops[i] as (typeof ops)[number]);
      return { enqueue, copies: count, streams: true };
    },
  };
}

/** A streaming draft's view: sinks and a window, the sinks met by a query of their own. */
function viewCase(heads: Heads, cell: Cell, budget: number): KernelCase {
  const extra: Extra = (device, stack) => {
    const { kvHeads, group, headDim } = heads;
    const qSink = randomBf16(device, stack, [cell.lengths.length, kvHeads * group, headDim]);
    return { qSink, sinks, window: budget - sinks };
  };
  return attentionCase({
    heads,
    cell: { ...cell, readTokens: budget },
    rows: 1,
    label: `draft view ${budget}`,
    extra,
  });
}

/** A SnapKV draft's reads: selected tokens of each KV head, and what came since. */
function listCase(heads: Heads, cell: Cell, budget: number): KernelCase {
  const tail = 32;
  const picked = budget - tail;
  const extra: Extra = (device, stack) => {
    const b = cell.lengths.length;
    const lists = cell.lengths.flatMap((length) => {
      const step = (length - tail) / picked;
      const row = Array.from({ length: picked }, (_, i) => Math.floor((i + 0.5) * step));
      return repeat(row, heads.kvHeads).flat();
    });
    return {
      indices: int32(device, stack, lists, [b, heads.kvHeads, picked]),
      prefixLen: int32(device, stack, repeat(picked, b)),
      tailStart: int32(
        device,
        stack,
        cell.lengths.map((length) => length - tail),
      ),
    };
  };
  return attentionCase({
    heads,
    cell: { ...cell, readTokens: budget },
    rows: 1,
    label: `draft list ${budget}`,
    extra,
  });
}

/** A whole prompt at once: every row reads the rows before it. */
function prefillCase(tokens: number): KernelCase {
  const cell = square(1, tokens);
  return attentionCase({ heads: llama8b, cell, rows: tokens, label: "prefill", copies: 1 });
}

/** The new rows of a decode step or a verify pass into their pages. */
function appendCase(heads: Heads, cell: Cell, rows: number): KernelCase {
  const b = cell.lengths.length;
  const { kvHeads, group, headDim } = heads;
  const width = (group + 2) * kvHeads * headDim;
  return {
    op: "rope_append",
    shape: `q=${rows} ${cell.label} ${heads.model}`,
    bytes: b * rows * width * 4,
    flops: 0,
    memoryBytes: pool.layerBytes,
    prepare(device, stack) {
      const all = b * rows;
      const at = (row: number) => (cell.lengths[Math.floor(row / rows)] as number) - rows;
      const op = {
        qkv: randomBf16(device, stack, [all, width]),
        rope: stack.use(device.alloc([all, headDim], "f32")),
        q: stack.use(device.alloc([all, kvHeads * group, headDim], "bf16")),
        rowSeq: int32(
          device,
          stack,
          Array.from({ length: all }, (_, i) => Math.floor(i / rows)),
        ),
        positions: int32(
          device,
          stack,
          Array.from({ length: all }, (_, i) => at(i) + (i % rows)),
        ),
        ...pagedCache(device, stack, heads, cell),
      };
      const copies = op.cache.layers;
      const ops = Array.from({ length: copies }, (_, layer) => ({ ...op, layer }));
      const enqueue = (i: number) => ropeAppend(ops[i] as (typeof ops)[number]);
      return { enqueue, copies, streams: false };
    },
  };
}

export function attentionCases(): KernelCase[] {
  const decode = [1, 4, 8].flatMap((rows) =>
    [...decodeCells, ragged].map((cell) =>
      attentionCase({ heads: llama8b, cell, rows, label: `q=${rows}` }),
    ),
  );
  const small = [1, 8].map((rows) =>
    attentionCase({ heads: llama1b, cell: square(32, 16384), rows, label: `q=${rows}` }),
  );
  const drafts = [1, 8, 32].flatMap((b) =>
    [513, 2049].map((budget) => viewCase(llama8b, square(b, 16384), budget)),
  );
  const lists = [513, 2049].map((budget) => listCase(llama8b, square(32, 16384), budget));
  const prefills = [4096, 16384, 65536].map(prefillCase);
  const appends = [1, 8].map((rows) => appendCase(llama8b, square(32, 16384), rows));
  return [...decode, ...small, ...drafts, ...lists, ...prefills, ...appends];
}

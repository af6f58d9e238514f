// Cases over the paged cache: attention in each of its forms, the append, and SnapKV's steps.

import {
  type AttentionOp,
  allocKvCache,
  attention,
  attentionWorkspaceBytes,
  type Device,
  gatherKv,
  type KvCacheRef,
  keepQueries,
  positions,
  ropeAppend,
  snapScore,
  snapSelect,
  type Tensor,
} from "@magicdec/tensor";
import type { KernelCase, PreparedKernel } from "./kernels_measure.ts";
import { copiesFor, int32, normals, randomBf16, repeat } from "./kernels_shapes.ts";

const sequences = 8;
const contextTokens = 8192;
const pageSize = 64;
const appendRows = 512;

/** As in both Llamas: 134 MB of keys and values at a head dim of 64, which no cache of a core holds. */
const benchKvHeads = 8;

interface Geometry {
  readonly headDim: number;
  readonly kvHeads: number;
  /** Query heads of a KV head. */
  readonly group: number;
  readonly sequences: number;
  readonly tokens: number;
}

interface Paged {
  readonly cache: KvCacheRef;
  readonly blockTable: Tensor;
}

function kvBytes({ headDim, kvHeads }: Geometry, tokens: number): number {
  return tokens * kvHeads * headDim * 2 * 2;
}

/** A cache full of normals, its pages in an order that no prefetcher knows. */
function fullCache(device: Device, stack: DisposableStack, g: Geometry): Paged {
  const { headDim, kvHeads } = g;
  const pagesEach = Math.ceil(g.tokens / pageSize);
  const pages = g.sequences * pagesEach;
  const cache = allocKvCache(device, { layers: 1, pages, pageSize, kvHeads, headDim });
  stack.use(cache.data);
  const stride = coprimeNear(pages);
  const table = Array.from({ length: pages }, (_, i) => (i * stride) % pages);
  const blockTable = int32(device, stack, table, [g.sequences, pagesEach]);
  using setUp = new DisposableStack();
  const qkv = randomBf16(device, setUp, [appendRows, 3 * kvHeads * headDim]);
  const rope = setUp.use(device.from(unrotated(appendRows, headDim), [appendRows, headDim], "f32"));
  const q = setUp.use(device.alloc([appendRows, kvHeads, headDim], "bf16"));
  const rowSeq = setUp.use(device.alloc([appendRows], "i32"));
  const at = setUp.use(device.alloc([appendRows], "i32"));
  for (let s = 0; s < g.sequences; s++) {
    rowSeq.write(new Int32Array(appendRows).fill(s));
    for (let start = 0; start < g.tokens; start += appendRows) {
      const rows = Math.min(appendRows, g.tokens - start);
      at.write(Int32Array.from({ length: rows }, (_, i) => start + i));
      ropeAppend({
        qkv: qkv.rows(0, rows),
        rope: rope.rows(0, rows),
        q: q.rows(0, rows),
        rowSeq: rowSeq.view([rows]),
        positions: at.view([rows]),
        blockTable,
        cache,
        layer: 0,
      });
    }
  }
  return { cache, blockTable };
}

function coprimeNear(n: number): number {
  const gcd = (a: number, b: number): number => (b === 0 ? a : gcd(b, a % b));
  let stride = Math.max(Math.floor(n * 0.618), 1);
  while (gcd(stride, n) !== 1) stride++;
  return stride;
}

function unrotated(rows: number, headDim: number): Float32Array {
  return Float32Array.from({ length: rows * headDim }, (_, i) =>
    i % headDim < headDim / 2 ? 1 : 0,
  );
}

interface AttentionShape {
  readonly geometry: Geometry;
  /** New rows of each sequence. */
  readonly rows: number;
  readonly label: string;
  /** KV tokens that each row of a sequence reads. */
  readonly readTokens: number;
  /** Score pairs (row, token) of a sequence; rows * readTokens but for a causal prefill. */
  readonly pairs?: number;
  readonly extra?: (device: Device, stack: DisposableStack) => Partial<AttentionOp>;
}

function attentionCase(shape: AttentionShape): KernelCase {
  const { geometry: g, rows, label, readTokens, extra } = shape;
  const heads = g.group * g.kvHeads;
  const { pairs = rows * readTokens } = shape;
  const bytes = g.sequences * (kvBytes(g, readTokens) + 2 * rows * heads * g.headDim * 2);
  return {
    op: "attention",
    shape: `${label} d=${g.headDim} gqa=${g.group} new=${rows} rows/kv=${g.group * rows}`,
    bytes,
    flops: g.sequences * 4 * pairs * heads * g.headDim,
    memoryBytes: kvBytes(g, g.sequences * g.tokens),
    prepare(device, stack): PreparedKernel {
      const { cache, blockTable } = fullCache(device, stack, g);
      const b = g.sequences;
      const shapeQ = [b * rows, heads, g.headDim];
      const starts = Array.from({ length: b + 1 }, (_, s) => s * rows);
      const op = {
        q: randomBf16(device, stack, shapeQ),
        out: stack.use(device.alloc(shapeQ, "bf16")),
        qStart: int32(device, stack, starts),
        kvLen: int32(device, stack, repeat(g.tokens, b)),
        blockTable,
        cache,
        layer: 0,
        prefixLayer: 0,
        sinks: 0,
        window: 0,
        scale: 1 / Math.sqrt(g.headDim),
        ...extra?.(device, stack),
      };
      const workspace = stack.use(device.alloc([attentionWorkspaceBytes(op)], "u8"));
      const whole = { ...op, workspace };
      const streams = copiesFor(bytes).copies <= 4;
      return { enqueue: () => attention(whole), copies: 1, streams };
    },
  };
}

/** (group, new rows) so that a KV head sees 1 to 16 query rows. */
const decodeShapes = [
  [1, 1],
  [2, 1],
  [3, 1],
  [4, 1],
  [3, 2],
  [7, 1],
  [4, 2],
  [3, 4],
  [4, 4],
] as const;

export function attentionCases(): KernelCase[] {
  return [64, 128].flatMap((headDim) => {
    const geometry = (group: number): Geometry => ({
      headDim,
      kvHeads: benchKvHeads,
      group,
      sequences,
      tokens: contextTokens,
    });
    const full = decodeShapes.map(([group, rows]) =>
      attentionCase({
        geometry: geometry(group),
        rows,
        label: `${sequences}x${contextTokens}`,
        readTokens: contextTokens,
      }),
    );
    const views = [256, 512, 1024].map((budget) => viewCase(geometry(4), budget));
    const lists = [256, 1024].map((budget) => listCase(geometry(4), budget));
    return [...full, ...views, ...lists, ...prefillCases(geometry(4))];
  });
}

const sinks = 16;

function viewCase(geometry: Geometry, budget: number): KernelCase {
  return attentionCase({
    geometry,
    rows: 1,
    label: `view ${budget}`,
    readTokens: budget,
    extra: () => ({ sinks, window: budget - sinks }),
  });
}

function listCase(geometry: Geometry, budget: number): KernelCase {
  const tail = 32;
  const picked = budget - tail;
  return attentionCase({
    geometry,
    rows: 1,
    label: `list ${budget}`,
    readTokens: budget,
    extra: (device, stack) => {
      const b = geometry.sequences;
      const { tokens, kvHeads } = geometry;
      const step = Math.floor((tokens - tail) / picked);
      const row = Array.from({ length: picked }, (_, i) => i * step + ((i * 7919) % step));
      const all = Array.from({ length: b * kvHeads }, () => row).flat();
      return {
        indices: int32(device, stack, all, [b, kvHeads, picked]),
        prefixLen: int32(device, stack, repeat(picked, b)),
        tailStart: int32(device, stack, repeat(tokens - tail, b)),
      };
    },
  });
}

function prefillCases(base: Geometry): KernelCase[] {
  const rows = 512;
  return [rows, contextTokens].map((tokens) =>
    attentionCase({
      geometry: { ...base, sequences: 1, tokens },
      rows,
      label: `prefill to ${tokens}`,
      readTokens: tokens,
      pairs: rows * (tokens - rows) + (rows * (rows + 1)) / 2,
    }),
  );
}

export function cacheCases(): KernelCase[] {
  const geometry = { headDim: 64, kvHeads: 4, group: 1, sequences, tokens: contextTokens };
  return [
    appendCase(geometry, 8),
    appendCase(geometry, 512),
    positionsCase(),
    keepQueriesCase(geometry),
    snapScoreCase(geometry),
    snapSelectCase(geometry),
    gatherCase(geometry),
  ];
}

function cached(
  op: string,
  shape: string,
  bytes: number,
  enqueue: (device: Device, stack: DisposableStack) => () => void,
  memoryBytes = bytes,
): KernelCase {
  return {
    op,
    shape,
    bytes,
    flops: 0,
    memoryBytes,
    prepare: (device, stack) => ({ enqueue: enqueue(device, stack), copies: 1, streams: false }),
  };
}

function appendCase(g: Geometry, rows: number): KernelCase {
  const heads = g.group * g.kvHeads;
  const width = (heads + 2 * g.kvHeads) * g.headDim;
  const memory = kvBytes(g, g.sequences * g.tokens);
  const make = (device: Device, stack: DisposableStack) => {
    const { cache, blockTable } = fullCache(device, stack, g);
    const each = rows / g.sequences;
    const at = Array.from({ length: rows }, (_, i) => 100 + (i % each));
    const rowSeq = Array.from({ length: rows }, (_, i) => Math.floor(i / each));
    const rope = stack.use(device.from(unrotated(rows, g.headDim), [rows, g.headDim], "f32"));
    const op = {
      qkv: randomBf16(device, stack, [rows, width]),
      rope,
      q: stack.use(device.alloc([rows, heads, g.headDim], "bf16")),
      rowSeq: int32(device, stack, rowSeq),
      positions: int32(device, stack, at),
      blockTable,
      cache,
      layer: 0,
    };
    return () => ropeAppend(op);
  };
  return cached("rope_append", `d=${g.headDim} rows=${rows}`, rows * width * 4, make, memory);
}

function positionsCase(): KernelCase {
  return cached("positions", "b=8 r=8", 8 * 8 * 4, (device, stack) => {
    const op = {
      lens: int32(device, stack, repeat(8000, 8)),
      positions: stack.use(device.alloc([64], "i32")),
      kvLen: stack.use(device.alloc([8], "i32")),
      offset: 0,
    };
    return () => positions(op);
  });
}

function keepQueriesCase(g: Geometry): KernelCase {
  const rows = 64;
  const bytes = rows * g.kvHeads * g.headDim * 4;
  return cached("keep_queries", `d=${g.headDim} rows=${rows}`, bytes, (device, stack) => {
    const op = {
      q: randomBf16(device, stack, [rows, g.kvHeads, g.headDim]),
      rowSeq: int32(
        device,
        stack,
        Array.from({ length: rows }, (_, i) => i % 8),
      ),
      positions: int32(
        device,
        stack,
        Array.from({ length: rows }, (_, i) => i >> 3),
      ),
      out: stack.use(device.alloc([8, 40, g.kvHeads, g.headDim], "bf16")),
    };
    return () => keepQueries(op);
  });
}

const votes = 32;

function snapScoreCase(g: Geometry): KernelCase {
  const b = g.sequences;
  const heads = g.group * g.kvHeads;
  const bytes = b * (kvBytes(g, g.tokens) / 2 + g.kvHeads * g.tokens * 4);
  return {
    op: "snap_score",
    shape: `${b}x${g.tokens} d=${g.headDim} window=${votes}`,
    bytes,
    flops: b * 2 * votes * heads * g.tokens * g.headDim,
    memoryBytes: kvBytes(g, b * g.tokens),
    prepare(device, stack) {
      const { cache, blockTable } = fullCache(device, stack, g);
      const op = {
        queries: randomBf16(device, stack, [b, votes, heads, g.headDim]),
        lens: int32(device, stack, repeat(g.tokens, b)),
        blockTable,
        scores: stack.use(device.alloc([b, g.kvHeads, g.tokens], "f32")),
        cache,
        layer: 0,
        window: votes,
        scale: 0.125,
      };
      return { enqueue: () => snapScore(op), copies: 1, streams: true };
    },
  };
}

function snapSelectCase(g: Geometry): KernelCase {
  const b = g.sequences;
  const budget = 512;
  const count = b * g.kvHeads * g.tokens;
  const shape = `${b}x${g.tokens} kv heads ${g.kvHeads} budget ${budget}`;
  return cached("snap_select", shape, count * 4, (device, stack) => {
    const dims = [b, g.kvHeads, g.tokens];
    const op = {
      scores: stack.use(device.from(normals(count), dims, "f32")),
      lens: int32(device, stack, repeat(g.tokens, b)),
      indices: stack.use(device.alloc([b, g.kvHeads, budget - votes], "i32")),
      prefixLen: stack.use(device.alloc([b], "i32")),
      tailStart: stack.use(device.alloc([b], "i32")),
      pooled: stack.use(device.alloc(dims, "f32")),
      budget,
      window: votes,
      kernel: 7,
      pooling: "average",
    } as const;
    return () => snapSelect(op);
  });
}

function gatherCase(g: Geometry): KernelCase {
  const b = g.sequences;
  const n = 480;
  const bytes = 2 * b * kvBytes(g, n);
  const memory = kvBytes(g, b * g.tokens);
  const make = (device: Device, stack: DisposableStack) => {
    const source = fullCache(device, stack, g);
    const out = fullCache(device, stack, { ...g, tokens: 512 });
    const row = Array.from({ length: n }, (_, i) => i * 17);
    const all = Array.from({ length: b * g.kvHeads }, () => row).flat();
    const op = {
      indices: int32(device, stack, all, [b, g.kvHeads, n]),
      prefixLen: int32(device, stack, repeat(n, b)),
      sourceTable: source.blockTable,
      outTable: out.blockTable,
      source: source.cache,
      out: out.cache,
      sourceLayer: 0,
      outLayer: 0,
    };
    return () => gatherKv(op);
  };
  return cached("gather_kv", `${b}x${n} of ${g.tokens} d=${g.headDim}`, bytes, make, memory);
}

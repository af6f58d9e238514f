// Positions, rotation and the append to the paged cache. What was appended is seen through
// attention, since pages are opaque.

import { expect, test } from "bun:test";
import {
  bf16,
  columns,
  expectClose,
  expectSame,
  forEachBackend,
  int32,
  PagedCache,
  Random,
  randomKv,
  readNumbers,
  reference,
  rowsOf,
  repeat,
} from "@magicdec/testkit";
import {
  attention,
  attentionWorkspaceBytes,
  positions,
  ropeAppend,
  ropeTable,
  roundToBf16,
} from "@magicdec/tensor";

function inverseFrequencies(headDim: number): Float32Array {
  return Float32Array.from({ length: headDim / 2 }, (_, i) => 10000 ** ((-2 * i) / headDim));
}

forEachBackend((backend) => {
  test("positions of the new rows from the lengths", () => {
    using device = backend.open();
    for (const [b, r, offset] of [
      [1, 1, 0],
      [3, 4, 2],
      [17, 5, -1],
    ] as const) {
      const random = new Random();
      const lengths = Array.from({ length: b }, () => random.integer(1, 9000));
      using lens = int32(device, lengths);
      using at = device.alloc([b * r], "i32");
      using kvLen = device.alloc([b], "i32");
      positions({ lens, positions: at, kvLen, offset });
      const rows = lengths.flatMap((n) => Array.from({ length: r }, (_, i) => n + offset + i));
      expectSame(at.read(), rows, "positions");
      expectSame(
        kvLen.read(),
        lengths.map((n) => n + offset + r),
        "kvLen",
      );
    }
  });

  test("rope tables, far positions, clamped to a view", () => {
    using device = backend.open();
    const random = new Random();
    for (const headDim of [64, 96, 128, 256]) {
      const at = [0, 1, 255, 256, 131071, random.integer(0, 131071), random.integer(0, 8191)];
      const invFreq = inverseFrequencies(headDim);
      using atTensor = int32(device, at);
      using invFreqTensor = device.from(invFreq, [headDim / 2], "f32");
      using out = device.alloc([at.length, headDim], "f32");
      const op = { positions: atTensor, invFreq: invFreqTensor, out };
      const label = `d ${headDim}`;
      ropeTable(op);
      // The angle itself is an f32 product: at 131071 its half step is 2^-8.
      const tolerance = { absolute: 0.01, relative: 0, label, shape: out.shape };
      expectClose(readNumbers(out), reference.ropeTable(at, invFreq), tolerance);
      ropeTable({ ...op, scale: 1.5, viewTokens: 256 });
      const near = { absolute: 1e-4, relative: 0, label, shape: out.shape };
      expectClose(readNumbers(out), reference.ropeTable(at, invFreq, 1.5, 256), near);
    }
  });

  test("ropeAppend rotates q, stores rotated k and plain v, and skips padding rows", () => {
    using device = backend.open();
    const random = new Random();
    for (const [heads, kvHeads, headDim, pageSize] of [
      [3, 1, 64, 64],
      [4, 2, 128, 64],
      [2, 2, 96, 128],
      [8, 1, 256, 64],
    ] as const) {
      const label = `heads ${heads}/${kvHeads}, d ${headDim}`;
      // Sequence 1 crosses a page boundary; sequence 0 starts at one. Rows of both are mixed, one
      // row is padding.
      const before = [64, 62].map((tokens) => randomKv(random, tokens, kvHeads, headDim));
      using paged = PagedCache.build(device, random, before, { pageSize, capacity: 200 });
      const rowSeq = [0, 1, 1, -1, 0, 1, 1];
      const at = [64, 62, 63, 5, 65, 64, 65];
      const rows = rowSeq.length;
      const width = (heads + 2 * kvHeads) * headDim;
      const qkv = random.bf16(rows * width);
      const invFreq = inverseFrequencies(headDim);
      const table = reference.ropeTable(at, invFreq);
      const sinkTable = reference.ropeTable(at, invFreq, 1, 20);
      using qkvTensor = bf16(device, qkv, [rows, width]);
      using rope = device.from(Float32Array.from(table), [rows, headDim], "f32");
      using ropeSink = device.from(Float32Array.from(sinkTable), [rows, headDim], "f32");
      using q = device.alloc([rows, heads, headDim], "bf16");
      using qSink = device.alloc([rows, heads, headDim], "bf16");
      using rowSeqTensor = int32(device, rowSeq);
      using atTensor = int32(device, at);
      const { cache, blockTable, layer } = paged;
      const common = { qkv: qkvTensor, rope, q, rowSeq: rowSeqTensor, positions: atTensor };
      ropeAppend({ ...common, ropeSink, qSink, cache, blockTable, layer });

      const qPlain = columns(qkv, width, 0, heads * headDim);
      const kPlain = columns(qkv, width, heads * headDim, (heads + kvHeads) * headDim);
      const vPlain = columns(qkv, width, (heads + kvHeads) * headDim, width);
      const real = [0, 1, 2, 4, 5, 6];
      const only = (data: ArrayLike<number>, size: number) =>
        real.flatMap((row) => rowsOf(data, size, row, row + 1));
      const step = { relative: 2 ** -8, absolute: 1e-2, label };
      const qWidth = heads * headDim;
      const rotated = reference.rotate(qPlain, table, heads, headDim);
      expectClose(only(readNumbers(q), qWidth), only(rotated, qWidth), step);
      const sinkRotated = reference.rotate(qPlain, sinkTable, heads, headDim);
      expectClose(only(readNumbers(qSink), qWidth), only(sinkRotated, qWidth), step);

      const kRotated = roundToBf16(
        Float32Array.from(reference.rotate(kPlain, table, kvHeads, headDim)),
      );
      const kWidth = kvHeads * headDim;
      for (const [sequence, kv] of before.entries()) {
        const mine = real.filter((row) => rowSeq[row] === sequence);
        const added = (data: ArrayLike<number>) =>
          mine.flatMap((row) => rowsOf(data, kWidth, row, row + 1));
        const k = [...Array.from(kv.k), ...added(kRotated)];
        const v = [...Array.from(kv.v), ...added(vPlain)];
        const kvLen = k.length / kWidth;
        const query = random.bf16(heads * headDim);
        using queryTensor = bf16(device, query, [1, heads, headDim]);
        using out = device.alloc([1, heads, headDim], "bf16");
        using qStart = int32(device, [0, 1]);
        using kvLenTensor = int32(device, [kvLen]);
        const row = blockTable.rows(sequence, sequence + 1);
        const shared = { q: queryTensor, out, qStart, kvLen: kvLenTensor, blockTable: row };
        const op = { ...shared, cache, layer, scale: 0.2 };
        using workspace = device.alloc([attentionWorkspaceBytes(op)], "u8");
        attention({ ...op, workspace });
        const contents = { k, v, kvHeads, headDim };
        const wanted = reference.attention({ q: query, heads, kv: contents, kvLen, scale: 0.2 });
        const tolerance = { absolute: 0.03, relative: 0.02, label: `${label}, contents` };
        expectClose(readNumbers(out), wanted, tolerance);
      }
    }
  });

  test("the bits of an appended row do not depend on the rows beside it", () => {
    using device = backend.open();
    const random = new Random();
    const [heads, kvHeads, headDim, rows] = [3, 1, 64, 9];
    const width = (heads + 2 * kvHeads) * headDim;
    const qkv = random.bf16(rows * width);
    const at = Array.from({ length: rows }, (_, row) => row + 60);
    using qkvTensor = bf16(device, qkv, [rows, width]);
    using atTensor = int32(device, at);
    using invFreq = device.from(inverseFrequencies(headDim), [headDim / 2], "f32");
    using rope = device.alloc([rows, headDim], "f32");
    ropeTable({ positions: atTensor, invFreq, out: rope });
    const caches: ArrayLike<number>[] = [];
    const queries: number[][] = [];
    for (const step of [1, 4, rows]) {
      const empty = [randomKv(random, 0, kvHeads, headDim)];
      using paged = PagedCache.build(device, new Random(5), empty, { capacity: 128 });
      using q = device.alloc([rows, heads, headDim], "bf16");
      using rowSeq = int32(device, repeat(0, rows));
      for (let row = 0; row < rows; row += step) {
        const end = Math.min(row + step, rows);
        ropeAppend({
          qkv: qkvTensor.rows(row, end),
          rope: rope.rows(row, end),
          q: q.rows(row, end),
          rowSeq: rowSeq.view([end - row]),
          positions: atTensor.rows(row, end),
          blockTable: paged.blockTable,
          cache: paged.cache,
          layer: 0,
        });
      }
      caches.push(paged.cache.data.read());
      queries.push(readNumbers(q));
    }
    for (const other of [1, 2]) {
      expectSame(queries[other] ?? [], queries[0] ?? [], "q");
      expectSame(caches[other] ?? [], caches[0] ?? [], "cache");
    }
    expect(caches).toHaveLength(3);
  });
});

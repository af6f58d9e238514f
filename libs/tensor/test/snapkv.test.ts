// SnapKV: keeping queries, scoring, selecting, gathering, against f64 references.

import { expect, test } from "bun:test";
import {
  bf16,
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
  seedNote,
  repeat,
} from "@magicdec/testkit";
import {
  attention,
  attentionWorkspaceBytes,
  gatherKv,
  keepQueries,
  snapScore,
  snapSelect,
} from "@magicdec/tensor";

forEachBackend((backend) => {
  test("keepQueries keeps the last rows of each sequence in its ring", () => {
    using device = backend.open();
    const random = new Random();
    const [b, ring, heads, headDim] = [3, 5, 2, 64];
    const width = heads * headDim;
    const rowSeq = [0, 0, 2, -1, 2, 2, 0];
    const at = [3, 4, 9, 0, 10, 11, 5];
    const q = random.bf16(rowSeq.length * width);
    using qTensor = bf16(device, q, [rowSeq.length, heads, headDim]);
    using rowSeqTensor = int32(device, rowSeq);
    using atTensor = int32(device, at);
    using out = device.alloc([b, ring, heads, headDim], "bf16");
    keepQueries({ q: qTensor, rowSeq: rowSeqTensor, positions: atTensor, out });
    const wanted = repeat(0, b * ring * width);
    rowSeq.forEach((sequence, row) => {
      if (sequence < 0) return;
      const to = (sequence * ring + ((at[row] as number) % ring)) * width;
      rowsOf(q, width, row, row + 1).forEach((x, i) => (wanted[to + i] = x));
    });
    expectSame(readNumbers(out), wanted, "ring");
  });

  test("snapScore against the reference, ragged lengths, also on a shuffled ring", () => {
    using device = backend.open();
    const random = new Random();
    for (const [heads, kvHeads, headDim, window] of [
      [3, 1, 64, 16],
      [4, 4, 128, 32],
      [8, 2, 64, 7],
      [2, 1, 96, 1],
    ] as const) {
      const ring = window + 3;
      const width = heads * headDim;
      const lengths = [window + 1, 64, 65 + window, 300];
      const contents = lengths.map((length) => randomKv(random, length, kvHeads, headDim));
      using paged = PagedCache.build(device, random, contents);
      const queries = lengths.map(() => random.bf16(window * width));
      const rings = new Float32Array(lengths.length * ring * width);
      lengths.forEach((length, s) => {
        for (let i = 0; i < window; i++) {
          const position = length - window + i;
          const row = queries[s]?.subarray(i * width, (i + 1) * width) ?? [];
          rings.set(row, (s * ring + (position % ring)) * width);
        }
      });
      const maxTokens = 320;
      using ringTensor = bf16(device, rings, [lengths.length, ring, heads, headDim]);
      using lens = int32(device, lengths);
      using scores = device.alloc([lengths.length, kvHeads, maxTokens], "f32");
      const scale = 1 / Math.sqrt(headDim);
      const { blockTable, cache, layer } = paged;
      snapScore({ queries: ringTensor, lens, blockTable, scores, cache, layer, window, scale });
      const actual = readNumbers(scores);
      lengths.forEach((length, s) => {
        const kv = contents[s] ?? randomKv(random, 0, kvHeads, headDim);
        const input = { queries: queries[s] ?? [], heads, kv, length, window, scale };
        const wanted = reference.snapScore(input);
        const context = length - window;
        for (let head = 0; head < kvHeads; head++) {
          const at = (s * kvHeads + head) * maxTokens;
          expectClose(
            actual.slice(at, at + context),
            wanted.slice(head * context, (head + 1) * context),
            { absolute: 1e-4, relative: 0.02, label: `d ${headDim}, length ${length}` },
          );
        }
      });
    }
  });

  test("snapSelect takes exactly the best pooled tokens, ascending", () => {
    using device = backend.open();
    const random = new Random();
    const kvHeads = 2;
    const maxTokens = 700;
    for (const [budget, window, kernel, pooling] of [
      [64, 16, 5, "average"],
      [100, 32, 7, "max"],
      [129, 1, 1, "average"],
      [257, 8, 1, "max"],
    ] as const) {
      const picked = budget - window;
      const lengths = [1, window, budget, budget + 1, 700, random.integer(budget + 1, 700)];
      const b = lengths.length;
      // Multiples of 2^-10, so that pooling is exact and ties are many.
      const values = Float32Array.from(
        { length: b * kvHeads * maxTokens },
        () => random.integer(0, 200) / 1024,
      );
      using scores = device.from(values, [b, kvHeads, maxTokens], "f32");
      using pooled = device.alloc([b, kvHeads, maxTokens], "f32");
      using lens = int32(device, lengths);
      using indices = device.alloc([b, kvHeads, picked], "i32");
      using prefixLen = device.alloc([b], "i32");
      using tailStart = device.alloc([b], "i32");
      const results = { indices, prefixLen, tailStart, pooled };
      snapSelect({ scores, lens, ...results, budget, window, kernel, pooling });
      const whole = lengths.map((length) => length <= budget);
      expectSame(
        prefixLen.read(),
        lengths.map((length, s) => (whole[s] ? 0 : Math.min(picked, length - window))),
        "prefixLen",
      );
      expectSame(
        tailStart.read(),
        lengths.map((length, s) => (whole[s] ? 0 : length - window)),
        "tailStart",
      );
      const chosen = readNumbers(indices);
      lengths.forEach((length, s) => {
        if (whole[s]) return;
        for (let head = 0; head < kvHeads; head++) {
          const row = s * kvHeads + head;
          const context = values.subarray(row * maxTokens, row * maxTokens + length - window);
          const smooth = Float32Array.from(reference.pool(context, kernel, pooling));
          const wanted = reference.selectBest(smooth, Math.min(picked, context.length));
          const actual = chosen.slice(row * picked, row * picked + wanted.length);
          if (kernel === 1 || pooling === "max") expectSame(actual, wanted, `length ${length}`);
          else expectBestSum(actual, wanted, smooth);
        }
      });
    }
  });

  /**
   * Averages that tie in f64 may differ by a rounding in f32; what counts is that nothing better
   * was left out.
   */
  function expectBestSum(actual: number[], wanted: number[], scores: Float32Array): void {
    const ascending = actual.every((token, i) => i === 0 || token > (actual[i - 1] as number));
    expect(ascending, `ascending ${seedNote()}`).toBe(true);
    const sum = (tokens: number[]) =>
      tokens.reduce((total, token) => total + (scores[token] as number), 0);
    expectClose([sum(actual)], [sum(wanted)], {
      relative: 1e-5,
      label: "sum of the picked scores",
    });
  }

  test("gatherKv makes a compact cache of the picked tokens", () => {
    using device = backend.open();
    const random = new Random();
    for (const [kvHeads, headDim] of [
      [2, 64],
      [1, 128],
      [3, 96],
    ] as const) {
      const n = 100;
      const lengths = [n, 65, 1, 0];
      const contents = lengths.map(() => randomKv(random, 260, kvHeads, headDim));
      const empty = lengths.map(() => randomKv(random, 0, kvHeads, headDim));
      using source = PagedCache.build(device, random, contents, { layers: 2 });
      using compact = PagedCache.build(device, random, empty, { layers: 3, capacity: n });
      const picks = lengths.map((length) =>
        Array.from({ length: kvHeads }, () => {
          const chosen = random.permutation(260).slice(0, length);
          return [...chosen.sort((a, b) => a - b), ...repeat(0, n - length)];
        }),
      );
      const shape = [lengths.length, kvHeads, n];
      using indices = device.from(Int32Array.from(picks.flat(2)), shape, "i32");
      using prefixLen = int32(device, lengths);
      gatherKv({
        indices,
        prefixLen,
        sourceTable: source.blockTable,
        outTable: compact.blockTable,
        source: source.cache,
        out: compact.cache,
        sourceLayer: 1,
        outLayer: 2,
      });
      lengths.forEach((length, s) => {
        if (length === 0) return;
        const kv = contents[s] ?? randomKv(random, 0, kvHeads, headDim);
        const gather = (data: ArrayLike<number>) => {
          const out = new Float32Array(length * kvHeads * headDim);
          picks[s]?.forEach((tokens, head) => {
            tokens.slice(0, length).forEach((token, i) => {
              const row = rowsOf(data, headDim, token * kvHeads + head, token * kvHeads + head + 1);
              out.set(row, (i * kvHeads + head) * headDim);
            });
          });
          return out;
        };
        const picked = { k: gather(kv.k), v: gather(kv.v), kvHeads, headDim };
        const q = random.bf16(kvHeads * headDim);
        using qTensor = bf16(device, q, [1, kvHeads, headDim]);
        using out = device.alloc([1, kvHeads, headDim], "bf16");
        using qStart = int32(device, [0, 1]);
        using kvLen = int32(device, [length]);
        const blockTable = compact.blockTable.rows(s, s + 1);
        const { cache } = compact;
        const op = { q: qTensor, out, qStart, kvLen, blockTable, cache, layer: 2, scale: 0.2 };
        using workspace = device.alloc([attentionWorkspaceBytes(op)], "u8");
        attention({ ...op, workspace });
        const input = { q, heads: kvHeads, kv: picked, kvLen: length, scale: 0.2 };
        const label = `length ${length}, d ${headDim}`;
        const tolerance = { absolute: 0.03, relative: 0.02, label };
        expectClose(readNumbers(out), reference.attention(input), tolerance);
      });
    }
  });
});

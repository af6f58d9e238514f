// Attention in each of its forms against the f64 reference, on every backend of this machine.

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
  repeat,
} from "@magicdec/testkit";
import {
  type AttentionOp,
  attention,
  attentionWorkspaceBytes,
  type Device,
} from "@magicdec/tensor";

/** Probabilities are rounded to bf16 before they meet V, whose elements are of size 1. */
const tolerance = { absolute: 0.008, relative: 0.01 };

/**
 * With keys of zero every token read weighs the same, the only rounding left is the result's, and a
 * token that is missed, or read twice, shows whatever the lengths are.
 */
const countingTolerance = { absolute: 1e-4, relative: 2 ** -7 };

interface Sequence {
  kv: reference.SequenceKv;
  kvLen: number;
  /** (rows, h, d) */
  q: Float32Array;
  qSink: Float32Array;
}

interface Case {
  heads: number;
  kvHeads: number;
  headDim: number;
  pageSize?: number;
  layers?: number;
  /** Keys of zero, so that all tokens weigh the same. */
  counting?: boolean;
}

/** The same case with random keys, and with keys of zero. */
function bothWays(c: Case): Case[] {
  return [c, { ...c, counting: true }];
}

function contentsOf(random: Random, c: Case, tokens: number): reference.SequenceKv {
  const kv = randomKv(random, tokens, c.kvHeads, c.headDim);
  return c.counting ? { ...kv, k: new Float32Array(kv.k.length) } : kv;
}

function randomSequence(random: Random, c: Case, kvLen: number, rows: number): Sequence {
  const { heads, headDim } = c;
  const kv = contentsOf(random, c, kvLen);
  const count = rows * heads * headDim;
  return { kv, kvLen, q: random.bf16(count), qSink: random.bf16(count) };
}

type Extra = Partial<Omit<AttentionOp, "q" | "out" | "workspace" | "cache">>;

/** The attention of a batch, (rows of all sequences, h, d). */
function attend(
  device: Device,
  paged: PagedCache,
  c: Case,
  batch: readonly Sequence[],
  extra: Extra = {},
  withSink = false,
): number[] {
  const { heads, headDim } = c;
  const width = heads * headDim;
  const starts = [0];
  for (const { q } of batch) starts.push((starts.at(-1) ?? 0) + q.length / width);
  const rows = starts.at(-1) ?? 0;
  const shape = [rows, heads, headDim];
  const join = (key: "q" | "qSink") => batch.flatMap((sequence) => Array.from(sequence[key]));
  using q = bf16(device, join("q"), shape);
  using qSink = bf16(device, join("qSink"), shape);
  using out = device.alloc(shape, "bf16");
  using qStart = int32(device, starts);
  using kvLen = int32(
    device,
    batch.map((sequence) => sequence.kvLen),
  );
  const op = {
    q,
    qSink: withSink ? qSink : undefined,
    out,
    qStart,
    kvLen,
    blockTable: paged.blockTable,
    cache: paged.cache,
    layer: paged.layer,
    scale: 1 / Math.sqrt(headDim),
    ...extra,
  };
  using workspace = device.alloc([Math.max(attentionWorkspaceBytes(op), 64)], "u8");
  workspace.fill(0xff);
  attention({ ...op, workspace });
  return readNumbers(out);
}

function expected(c: Case, sequence: Sequence, more: Partial<reference.AttentionInput> = {}) {
  const { q, kv, kvLen } = sequence;
  const scale = 1 / Math.sqrt(c.headDim);
  return reference.attention({ q, heads: c.heads, kv, kvLen, scale, ...more });
}

function expectBatch(c: Case, actual: number[], wanted: Float64Array[], label: string): void {
  const joined = wanted.flatMap((part) => Array.from(part));
  const allowed = c.counting ? countingTolerance : tolerance;
  expectClose(actual, joined, { ...allowed, label: `${label} ${JSON.stringify(c)}` });
}

forEachBackend((backend) => {
  test("full attention: head dims, GQA 1 to 8, page sizes, ragged lengths, several rows", () => {
    using device = backend.open();
    const random = new Random();
    const cases: Case[] = [
      { heads: 1, kvHeads: 1, headDim: 64 },
      { heads: 9, kvHeads: 3, headDim: 64 },
      { heads: 4, kvHeads: 2, headDim: 96, pageSize: 128 },
      { heads: 8, kvHeads: 1, headDim: 128 },
      { heads: 5, kvHeads: 1, headDim: 64, pageSize: 256 },
      { heads: 6, kvHeads: 1, headDim: 256, layers: 2 },
      { heads: 7, kvHeads: 1, headDim: 64 },
    ];
    for (const c of cases.flatMap(bothWays)) {
      const shapes = [
        [1, 1],
        [64, 1],
        [65, 4],
        [3, 3],
        [127, 2],
        [random.integer(130, 300), random.integer(1, 17)],
      ] as const;
      const batch = shapes.map(([kvLen, rows]) => randomSequence(random, c, kvLen, rows));
      const contents = batch.map(({ kv }) => kv);
      using paged = PagedCache.build(device, random, contents, c);
      const wanted = batch.map((sequence) => expected(c, sequence));
      expectBatch(c, attend(device, paged, c, batch), wanted, "full");
    }
  });

  test("a long cache, cut into several chunks, and a prefill of all its rows", () => {
    using device = backend.open();
    const random = new Random();
    for (const c of bothWays({ heads: 2, kvHeads: 1, headDim: 64 })) {
      const long = randomSequence(random, c, 2500, 3);
      const prefill = randomSequence(random, c, 200, 200);
      using paged = PagedCache.build(device, random, [long.kv, prefill.kv], c);
      const wanted = [expected(c, long), expected(c, prefill)];
      expectBatch(c, attend(device, paged, c, [long, prefill]), wanted, "long and prefill");
    }
  });

  test("long caches, whose chunks make several groups, and rows of each block size", () => {
    using device = backend.open();
    const random = new Random();
    for (const [headDim, heads, rows] of [
      [64, 3, 2],
      [96, 2, 1],
      [128, 2, 9],
      [256, 1, 2],
    ] as const) {
      for (const c of bothWays({ heads, kvHeads: 1, headDim, pageSize: 256 })) {
        const batch = [
          randomSequence(random, c, 4700, rows),
          randomSequence(random, c, random.integer(40, 600), rows),
        ];
        const contents = batch.map(({ kv }) => kv);
        using paged = PagedCache.build(device, random, contents, c);
        const wanted = batch.map((sequence) => expected(c, sequence));
        const together = attend(device, paged, c, batch);
        expectBatch(c, together, wanted, "several groups");
        // The first is then cut at other places, and by other blocks.
        const [first] = batch as [Sequence];
        using blockTable = paged.blockTable.rows(0, 1);
        const alone = attend(device, paged, c, [first], { blockTable });
        expectSame(alone, together.slice(0, alone.length), `${headDim}: the first alone`);
      }
    }
  });

  test("sequences without rows or without tokens are left alone", () => {
    using device = backend.open();
    const random = new Random();
    const c: Case = { heads: 3, kvHeads: 1, headDim: 64 };
    const none = randomSequence(random, c, 0, 0);
    const idle = { ...randomSequence(random, c, 70, 0), kvLen: 70 };
    const busy = randomSequence(random, c, 66, 2);
    const contents = [none, idle, busy].map(({ kv }) => kv);
    using paged = PagedCache.build(device, random, contents, c);
    const wanted = [expected(c, busy)];
    expectBatch(c, attend(device, paged, c, [none, idle, busy]), wanted, "one busy of three");
  });

  test("a view: sinks met by qSink, the window slides with each row", () => {
    using device = backend.open();
    const random = new Random();
    for (const [heads, kvHeads, headDim, sinks, window] of [
      [4, 2, 64, 4, 60],
      [8, 1, 64, 1, 1],
      [3, 3, 128, 0, 65],
      [2, 1, 96, 70, 130],
      [2, 1, 64, 16, 240],
    ] as const) {
      const whole = sinks + window;
      const lengths = [1, whole - 1, whole, whole + 1, whole + 2, 400].filter((n) => n > 0);
      for (const c of bothWays({ heads, kvHeads, headDim })) {
        const batch = lengths.map((kvLen) =>
          randomSequence(random, c, kvLen, Math.min(kvLen, random.integer(1, 6))),
        );
        const contents = batch.map(({ kv }) => kv);
        using paged = PagedCache.build(device, random, contents, c);
        const view = { sinks, window };
        const label = `view ${sinks} + ${window}`;
        expectBatch(
          c,
          attend(device, paged, c, batch, view, true),
          batch.map((sequence) => expected(c, sequence, { view, qSink: sequence.qSink })),
          label,
        );
        expectBatch(
          c,
          attend(device, paged, c, batch, view),
          batch.map((sequence) => expected(c, sequence, { view })),
          `${label}, q for the sinks`,
        );
      }
    }
  });

  test("an index list before the tail", () => {
    using device = backend.open();
    const random = new Random();
    for (const [heads, kvHeads, headDim, n, longest] of [
      [6, 3, 64, 150, 500],
      [8, 1, 128, 150, 500],
      [4, 2, 96, 150, 500],
      [3, 1, 256, 150, 500],
      // Its list makes two groups of chunks.
      [1, 1, 64, 4200, 4700],
    ] as const) {
      for (const c of bothWays({ heads, kvHeads, headDim })) {
        const batch = [
          { sequence: randomSequence(random, c, longest, 3), length: n, start: longest - 20 },
          { sequence: randomSequence(random, c, 130, 1), length: 65, start: 127 },
          { sequence: randomSequence(random, c, 90, 2), length: 0, start: 0 },
          { sequence: randomSequence(random, c, 300, 4), length: 1, start: 200 },
        ];
        const picks = batch.map(({ length, start }) =>
          Array.from({ length: kvHeads }, () => {
            const chosen = random.permutation(Math.max(start, n)).filter((i) => i < start);
            const sorted = chosen.slice(0, length).sort((a, b) => a - b);
            return [...sorted, ...repeat(0, n - sorted.length)];
          }).flat(),
        );
        const contents = batch.map(({ sequence }) => sequence.kv);
        using paged = PagedCache.build(device, random, contents, c);
        using indices = device.from(Int32Array.from(picks.flat()), [4, kvHeads, n], "i32");
        using prefixLen = int32(
          device,
          batch.map(({ length }) => length),
        );
        using tailStart = int32(
          device,
          batch.map(({ start }) => start),
        );
        const sequences = batch.map(({ sequence }) => sequence);
        const extra = { indices, prefixLen, tailStart };
        const wanted = batch.map(({ sequence, length, start }, i) =>
          expected(c, sequence, { indices: { tokens: picks[i] ?? [], n, length, start } }),
        );
        const together = attend(device, paged, c, sequences, extra);
        expectBatch(c, together, wanted, "list");
        let at = 0;
        sequences.forEach((sequence, s) => {
          const alone = attend(device, paged, c, [sequence], {
            indices: indices.rows(s, s + 1),
            prefixLen: prefixLen.rows(s, s + 1),
            tailStart: tailStart.rows(s, s + 1),
            blockTable: paged.blockTable.rows(s, s + 1),
          });
          expectSame(alone, together.slice(at, at + alone.length), `sequence ${s} alone`);
          at += alone.length;
        });
      }
    }
  });

  test("a compact prefix cache before the tail", () => {
    using device = backend.open();
    const random = new Random();
    for (const c of bothWays({ heads: 4, kvHeads: 2, headDim: 64 })) {
      const batch = [
        { sequence: randomSequence(random, c, 300, 3), length: 130, start: 270 },
        { sequence: randomSequence(random, c, 100, 1), length: 64, start: 99 },
        { sequence: randomSequence(random, c, 65, 2), length: 0, start: 0 },
      ];
      const sequences = batch.map(({ sequence }) => sequence);
      const prefixes = batch.map(({ length }) => contentsOf(random, c, length));
      using paged = PagedCache.build(
        device,
        random,
        sequences.map(({ kv }) => kv),
      );
      using prefix = PagedCache.build(device, random, prefixes, { layers: 2 });
      using prefixLen = int32(
        device,
        batch.map(({ length }) => length),
      );
      using tailStart = int32(
        device,
        batch.map(({ start }) => start),
      );
      const extra = {
        prefixCache: prefix.cache,
        prefixTable: prefix.blockTable,
        prefixLayer: 1,
        prefixLen,
        tailStart,
      };
      const wanted = batch.map(({ sequence, length, start }, i) => {
        const kv = prefixes[i] ?? contentsOf(random, c, 0);
        return expected(c, sequence, { prefix: { kv, length, start } });
      });
      expectBatch(c, attend(device, paged, c, sequences, extra), wanted, "prefix cache");
    }
  });

  test("a row has the same bits alone, among others, beside any rows, on any threads", () => {
    const random = new Random();
    const c: Case = { heads: 6, kvHeads: 2, headDim: 64 };
    const width = c.heads * c.headDim;
    const rows = 7;
    const subject = randomSequence(random, c, 1100, rows);
    const others = [40, 64, 700, 1300].map((kvLen) =>
      randomSequence(random, c, kvLen, random.integer(1, 9)),
    );
    for (const view of [undefined, { sinks: 4, window: 252 }]) {
      let wanted: number[] | undefined;
      for (const threads of backend.threadCounts) {
        using device = backend.open({ threads });
        using alone = PagedCache.build(device, random, [subject.kv], c);
        const result = attend(device, alone, c, [subject], view, view !== undefined);
        wanted ??= result;
        expectSame(result, wanted, `${threads ?? "a GPU's"} threads`);
        const batch = [others[0], others[1], subject, others[2], others[3]] as Sequence[];
        const contents = batch.map(({ kv }) => kv);
        using together = PagedCache.build(device, random, contents, c);
        const all = attend(device, together, c, batch, view, view !== undefined);
        const before = batch.slice(0, 2).reduce((sum, s) => sum + s.q.length, 0);
        expectSame(all.slice(before, before + subject.q.length), wanted, "among others");
        for (let row = 0; row < rows; row++) {
          const single = {
            kv: subject.kv,
            kvLen: subject.kvLen - rows + 1 + row,
            q: subject.q.subarray(row * width, (row + 1) * width),
            qSink: subject.qSink.subarray(row * width, (row + 1) * width),
          };
          const bits = attend(device, alone, c, [single], view, view !== undefined);
          expectSame(bits, rowsOf(wanted, width, row, row + 1), `row ${row} alone`);
        }
      }
    }
  });

  test("the workspace does not depend on the lengths, and less than it is refused", () => {
    using device = backend.open();
    const random = new Random();
    const c: Case = { heads: 2, kvHeads: 1, headDim: 64 };
    const sequence = randomSequence(random, c, 900, 2);
    using paged = PagedCache.build(device, random, [sequence.kv], c);
    using q = bf16(device, sequence.q, [2, 2, 64]);
    using out = device.alloc([2, 2, 64], "bf16");
    using qStart = int32(device, [0, 2]);
    using kvLen = int32(device, [900]);
    const { cache, blockTable, layer } = paged;
    const op = { q, out, qStart, kvLen, blockTable, cache, layer, scale: 0.125 };
    const bytes = attentionWorkspaceBytes(op);
    expect(bytes).toBeGreaterThan(0);
    using workspace = device.alloc([bytes], "u8");
    attention({ ...op, workspace });
    const small = workspace.view([bytes - 1]);
    expect(() => attention({ ...op, workspace: small })).toThrow(/workspace/);
  });
});

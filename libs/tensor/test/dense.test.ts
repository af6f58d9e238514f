// The dense ops against f64 references, on every backend of this machine.

import { expect, test } from "bun:test";
import {
  bf16,
  expectClose,
  expectSame,
  forEachBackend,
  int32,
  Random,
  readNumbers,
  reference,
  rowsOf,
  type TestBackend,
} from "@magicdec/testkit";
import {
  add,
  allocWeight,
  cast,
  type Device,
  embedding,
  linear,
  type PackedWeight,
  packedWeightBytes,
  rmsNorm,
  siluMul,
  toBf16,
  weightPack,
} from "@magicdec/tensor";

/** Half a bf16 step, and some f32 rounding. */
const bf16Step = { relative: 2 ** -8, absolute: 1e-3 };

function packed(
  device: Device,
  values: Float32Array,
  n: number,
  k: number,
): PackedWeight & Disposable {
  const weight = allocWeight(device, n, k);
  using source = device.from(values, [n, k], "bf16");
  weightPack({ source, weight });
  return { ...weight, [Symbol.dispose]: () => weight.data.dispose() };
}

forEachBackend((backend: TestBackend) => {
  test("embedding gathers rows, also from a range of columns of the ids", () => {
    using device = backend.open();
    const random = new Random();
    for (const n of [1, 63, 64, 576]) {
      const vocabulary = 37;
      const table = random.bf16(vocabulary * n);
      const ids = Array.from({ length: 3 * 5 }, () => random.integer(0, vocabulary - 1));
      using tableTensor = bf16(device, table, [vocabulary, n]);
      using idsTensor = int32(device, ids);
      using out = device.alloc([6, n], "bf16");
      const two = idsTensor.view([3, 2], { byteOffset: 2 * 4 });
      embedding({ table: tableTensor, ids: two, out, idsStride: 5 });
      const wanted = [2, 3, 7, 8, 12, 13].map((i) => ids[i] as number);
      expectSame(readNumbers(out), reference.embedding(table, wanted, n), `n = ${n}`);
      embedding({ table: tableTensor, ids: idsTensor.view([1, 6]), out });
      expectSame(readNumbers(out), reference.embedding(table, ids.slice(0, 6), n), `n = ${n}`);
    }
  });

  test("rmsNorm, alone and after adding delta in place", () => {
    using device = backend.open();
    const random = new Random();
    for (const [rows, n] of [
      [1, 64],
      [3, 65],
      [7, 576],
      [2, 4096],
      [33, 31],
    ] as const) {
      const x = random.bf16(rows * n, 3);
      const delta = random.bf16(rows * n);
      const weight = random.bf16(n);
      const label = `rows ${rows}, n ${n}`;
      using xTensor = bf16(device, x, [rows, n]);
      using deltaTensor = bf16(device, delta, [rows, n]);
      using weightTensor = bf16(device, weight, [n]);
      using out = device.alloc([rows, n], "bf16");
      rmsNorm({ x: xTensor, weight: weightTensor, out, eps: 1e-5 });
      const options = { ...bf16Step, label, shape: [rows, n] };
      expectClose(readNumbers(out), reference.rmsNorm(x, weight, 1e-5), options);
      expectSame(readNumbers(xTensor), x, `${label}: x without delta`);

      rmsNorm({ x: xTensor, delta: deltaTensor, weight: weightTensor, out, eps: 1e-5 });
      const sum = Float32Array.from(x, (value, i) => value + (delta[i] as number));
      const updated = readNumbers(xTensor);
      expectClose(updated, sum, { ...options, label: `${label}: x + delta` });
      expectClose(readNumbers(out), reference.rmsNorm(updated, weight, 1e-5), options);
    }
  });

  test("linear with bias, residual and epilogue, odd shapes, bf16 and f32 out", () => {
    using device = backend.open();
    const random = new Random();
    for (const [rows, n, k] of [
      [1, 1, 1],
      [1, 64, 64],
      [2, 65, 63],
      [5, 130, 577],
      [17, 192, 100],
      [29, 208, 1088],
      [64, 70, 129],
      [67, 128, 66],
    ] as const) {
      const label = `rows ${rows}, n ${n}, k ${k}`;
      const x = random.bf16(rows * k);
      const weight = random.bf16(n * k, 1 / Math.sqrt(k));
      const bias = random.bf16(n);
      const residual = random.bf16(rows * n);
      using xTensor = bf16(device, x, [rows, k]);
      using packedWeight = packed(device, weight, n, k);
      using biasTensor = bf16(device, bias, [n]);
      using residualTensor = bf16(device, residual, [rows, n]);
      using out = device.alloc([rows, n], "bf16");
      using outF32 = device.alloc([rows, n], "f32");
      const shape = { x, weight, rows, n, k };
      const op = { x: xTensor, weight: packedWeight };

      linear({ ...op, out });
      const plain = { ...bf16Step, label, shape: [rows, n] };
      expectClose(readNumbers(out), reference.linear(shape), plain);
      linear({ ...op, out: outF32 });
      const fine = { relative: 1e-4, absolute: 1e-4, label: `${label} f32`, shape: [rows, n] };
      expectClose(readNumbers(outF32), reference.linear(shape), fine);
      linear({ ...op, bias: biasTensor, residual: residualTensor, out });
      const all = reference.linear({ ...shape, bias, residual });
      expectClose(readNumbers(out), all, { ...plain, label: `${label}, bias and residual` });
      linear({ ...op, residual: residualTensor, out: residualTensor });
      const inPlace = reference.linear({ ...shape, residual });
      expectClose(readNumbers(residualTensor), inPlace, { ...plain, label: `${label}, in place` });
    }
  });

  test("linear with the silu_mul epilogue", () => {
    using device = backend.open();
    const random = new Random();
    for (const [rows, n, k] of [
      [1, 64, 96],
      [3, 65, 64],
      [9, 192, 65],
      [20, 80, 1152],
      [66, 128, 64],
    ] as const) {
      const x = random.bf16(rows * k);
      const weight = random.bf16(2 * n * k, 1 / Math.sqrt(k));
      using xTensor = bf16(device, x, [rows, k]);
      using packedWeight = packed(device, weight, 2 * n, k);
      using out = device.alloc([rows, n], "bf16");
      linear({ x: xTensor, weight: packedWeight, out, epilogue: "silu_mul" });
      const expected = reference.linear({ x, weight, rows, n: 2 * n, k, siluMul: true });
      const options = { ...bf16Step, label: `rows ${rows}, n ${n}, k ${k}`, shape: [rows, n] };
      expectClose(readNumbers(out), expected, options);
    }
  });

  test("a linear row has the same bits alone, among any others, on any number of threads", () => {
    const random = new Random();
    const rows = 100;
    for (const [n, k, epilogue] of [
      [192, 577, "none"],
      [320, 2048, "silu_mul"],
      [336, 1088, "none"],
      [70, 64, "none"],
    ] as const) {
      const x = random.bf16(rows * k);
      const weight = random.bf16(n * k, 1 / Math.sqrt(k));
      const width = epilogue === "silu_mul" ? n / 2 : n;
      let wanted: number[] | undefined;
      for (const threads of backend.threadCounts) {
        using device = backend.open({ threads });
        using packedWeight = packed(device, weight, n, k);
        using xTensor = bf16(device, x, [rows, k]);
        using out = device.alloc([rows, width], "bf16");
        linear({ x: xTensor, weight: packedWeight, out, epilogue });
        const all = readNumbers(out);
        wanted ??= all;
        expectSame(all, wanted, `${threads ?? "a GPU's"} threads`, [rows, width]);
        for (const m of [1, 2, 3, 4, 6, 7, 8, 12, 16, 17, 31, 32, 33, 63, 64, 65]) {
          const start = random.integer(0, rows - m);
          const part = out.rows(0, m);
          part.fill(0);
          const op = { x: xTensor.rows(start, start + m), weight: packedWeight, out: part };
          linear({ ...op, epilogue });
          const expected = rowsOf(wanted, width, start, start + m);
          expectSame(readNumbers(part), expected, `m ${m} of n ${n}, k ${k}`, [m, width]);
        }
      }
    }
  });

  test("a row of rmsNorm and siluMul is the same alone, among others, on any threads", () => {
    const random = new Random();
    const [rows, n] = [70, 1027];
    const [x, delta, gateUp] = [n, n, 2 * n].map((width) => random.bf16(rows * width));
    const weight = random.bf16(n);
    let wanted: number[][] | undefined;
    for (const threads of backend.threadCounts) {
      using device = backend.open({ threads });
      using weightTensor = bf16(device, weight, [n]);
      using out = device.alloc([rows, n], "bf16");
      const run = (start: number, end: number) => {
        using xTensor = bf16(device, rowsOf(x ?? [], n, start, end), [end - start, n]);
        using deltaTensor = bf16(device, rowsOf(delta ?? [], n, start, end), [end - start, n]);
        using gateTensor = bf16(device, rowsOf(gateUp ?? [], 2 * n, start, end), [
          end - start,
          2 * n,
        ]);
        const part = out.rows(0, end - start);
        rmsNorm({ x: xTensor, delta: deltaTensor, weight: weightTensor, out: part, eps: 1e-5 });
        const norm = readNumbers(part);
        siluMul({ gateUp: gateTensor, out: part });
        return [norm, readNumbers(xTensor), readNumbers(part)];
      };
      const all = run(0, rows);
      wanted ??= all;
      all.forEach((bits, i) =>
        expectSame(bits, wanted?.[i] ?? [], `${threads ?? "a GPU's"} threads`),
      );
      for (const [start, end] of [
        [0, 1],
        [33, 34],
        [20, 69],
      ] as const) {
        run(start, end).forEach((bits, i) => {
          expectSame(bits, rowsOf(wanted?.[i] ?? [], n, start, end), `rows ${start} to ${end}`);
        });
      }
    }
  });

  test("weights packed in parts, from f32 and from bf16, are the weight packed whole", () => {
    using device = backend.open();
    const random = new Random();
    const [n, k] = [150, 67];
    const values = random.bf16(n * k);
    using whole = packed(device, values, n, k);
    using parts = packed(device, new Float32Array(n * k), n, k);
    for (const [start, end, dtype] of [
      [70, 150, "f32"],
      [0, 1, "bf16"],
      [1, 70, "f32"],
    ] as const) {
      const rows = values.subarray(start * k, end * k);
      using source = device.from(rows, [end - start, k], dtype);
      weightPack({ source, weight: parts, rowOffset: start });
    }
    expectSame(parts.data.read(), whole.data.read(), "packed bytes");
    expect(whole.data.bytes).toBe(packedWeightBytes(device, n, k));
  });

  test("siluMul, add and cast, odd sizes", () => {
    using device = backend.open();
    const random = new Random();
    for (const [rows, n] of [
      [1, 1],
      [3, 33],
      [5, 1536],
    ] as const) {
      const options = { ...bf16Step, label: `rows ${rows}, n ${n}`, shape: [rows, n] };
      const gateUp = random.bf16(rows * 2 * n, 4);
      using gateUpTensor = bf16(device, gateUp, [rows, 2 * n]);
      using out = device.alloc([rows, n], "bf16");
      siluMul({ gateUp: gateUpTensor, out });
      expectClose(readNumbers(out), reference.siluMul(gateUp, n), options);

      const [a, b] = [random.bf16(rows * n), random.bf16(rows * n)];
      using aTensor = bf16(device, a, [rows, n]);
      using bTensor = bf16(device, b, [rows, n]);
      add({ a: aTensor, b: bTensor, out: aTensor });
      const sum = toBf16(Float32Array.from(a, (value, i) => value + (b[i] as number)));
      expectSame(aTensor.read(), sum, "a + b into a");

      const wide = random.normals(rows * n, 100);
      using wideTensor = device.from(wide, [rows, n], "f32");
      using narrow = device.alloc([rows, n], "bf16");
      cast({ source: wideTensor, out: narrow });
      expectSame(narrow.read(), toBf16(wide), "f32 to bf16");
      cast({ source: narrow, out: wideTensor });
      expectSame(readNumbers(wideTensor), readNumbers(narrow), "bf16 to f32");
    }
  });
});

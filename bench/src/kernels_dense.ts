// Cases of the dense ops: linear layers of each model, and the small ops between them.

import {
  add,
  allocWeight,
  cast,
  copy,
  type Device,
  embedding,
  linear,
  type PackedWeight,
  rmsNorm,
  ropeTable,
  siluMul,
  weightPack,
} from "@magicdec/tensor";
import type { KernelCase, PreparedKernel } from "./kernels_measure.ts";
import { copiesFor, int32, type LayerShape, layerShapes, randomBf16 } from "./kernels_shapes.ts";

const decodeRows = [1, 2, 4, 8, 16, 32, 64];
const prefillRows = 512;

interface LinearShape {
  readonly name: string;
  readonly n: number;
  readonly k: number;
  readonly silu?: boolean;
  readonly f32?: boolean;
}

function linearsOf(shape: LayerShape): readonly LinearShape[] {
  const { hidden, heads, kvHeads, headDim, intermediate, vocab } = shape;
  return [
    { name: "qkv", n: (heads + 2 * kvHeads) * headDim, k: hidden },
    { name: "o", n: hidden, k: heads * headDim },
    { name: "gate_up", n: 2 * intermediate, k: hidden, silu: true },
    { name: "down", n: hidden, k: intermediate },
    { name: "lm_head", n: vocab, k: hidden, f32: true },
  ];
}

export function linearCases(): KernelCase[] {
  return layerShapes.flatMap((layer) =>
    linearsOf(layer).flatMap((shape) => {
      const rows = shape.f32 ? [1, 8, 64] : [...decodeRows, prefillRows];
      return rows.map((m) => linearCase(layer.name, shape, m));
    }),
  );
}

function linearCase(model: string, shape: LinearShape, rows: number): KernelCase {
  const { name, n, k, silu = false, f32 = false } = shape;
  const weightBytes = n * k * 2;
  const outBytes = rows * (silu ? n / 2 : n) * (f32 ? 4 : 2);
  const { copies, streams } = copiesFor(weightBytes);
  return {
    op: "linear",
    shape: `${model} ${name} m=${rows}`,
    bytes: weightBytes + rows * k * 2 + outBytes,
    flops: 2 * rows * n * k,
    memoryBytes: copies * weightBytes + 2 * outBytes,
    prepare(device, stack): PreparedKernel {
      const weights = Array.from({ length: copies }, () => constantWeight(device, stack, n, k));
      const x = randomBf16(device, stack, [rows, k]);
      const shapeOut = [rows, silu ? n / 2 : n];
      const out = stack.use(device.alloc(shapeOut, f32 ? "f32" : "bf16"));
      const epilogue = silu ? "silu_mul" : "none";
      const ops = weights.map((weight) => ({ x, weight, out, epilogue }) as const);
      return { enqueue: (i) => linear(ops[i] ?? fail(i)), copies, streams };
    },
  };
}

/** A weight of one small constant: what is in it costs no time. */
function constantWeight(
  device: Device,
  stack: DisposableStack,
  n: number,
  k: number,
): PackedWeight {
  const weight = allocWeight(device, n, k);
  stack.use(weight.data);
  weight.data.fill(0x3c);
  return weight;
}

function fail(i: number): never {
  throw new RangeError(`no copy ${i}`);
}

/** Rows of a draft step, of a verify pass, and of a prefill chunk; 8 sequences. */
const smallRows = [8, 64, 512];

/** Of the models whose names match. */
export function smallCases(models = /./): KernelCase[] {
  const layers = layerShapes.filter(({ name }) => models.test(name));
  const packs = layers.map((layer) => packCase(layer));
  const others = layers.flatMap((layer) =>
    smallRows.flatMap((rows) => [
      embeddingCase(layer, rows),
      rmsNormCase(layer, rows),
      siluMulCase(layer, rows),
      addCase(layer, rows),
      castCase(layer, rows),
      copyCase(layer, rows),
      ropeTableCase(layer, rows),
    ]),
  );
  return [...packs, ...others];
}

function packCase(layer: LayerShape): KernelCase {
  const [n, k] = [layer.hidden, layer.intermediate];
  const bytes = n * k * 2;
  return {
    op: "weight_pack",
    shape: `${layer.name} down`,
    bytes: 2 * bytes,
    flops: 0,
    memoryBytes: 2 * bytes,
    prepare(device, stack) {
      const source = stack.use(device.alloc([n, k], "bf16"));
      const weight = constantWeight(device, stack, n, k);
      const op = { source, weight, rowOffset: 0 };
      return { enqueue: () => weightPack(op), copies: 1, streams: false };
    },
  };
}

function smallCase(
  op: string,
  layer: LayerShape,
  rows: number,
  bytes: number,
  prepare: (device: Device, stack: DisposableStack) => () => void,
): KernelCase {
  return {
    op,
    shape: `${layer.name} rows=${rows}`,
    bytes,
    flops: 0,
    memoryBytes: bytes,
    prepare(device, stack) {
      return { enqueue: prepare(device, stack), copies: 1, streams: false };
    },
  };
}

function embeddingCase(layer: LayerShape, rows: number): KernelCase {
  const { hidden, vocab } = layer;
  return smallCase("embedding", layer, rows, rows * hidden * 4, (device, stack) => {
    const table = stack.use(device.alloc([vocab, hidden], "bf16"));
    const tokens = Array.from({ length: rows }, (_, i) => (i * 7919) % vocab);
    const ids = int32(device, stack, tokens, [rows, 1]);
    const op = { table, ids, out: stack.use(device.alloc([rows, hidden], "bf16")), idsStride: 1 };
    return () => embedding(op);
  });
}

function rmsNormCase(layer: LayerShape, rows: number): KernelCase {
  const { hidden } = layer;
  return smallCase("rms_norm", layer, rows, rows * hidden * 8, (device, stack) => {
    const x = randomBf16(device, stack, [rows, hidden]);
    const delta = stack.use(device.alloc([rows, hidden], "bf16"));
    const weight = randomBf16(device, stack, [hidden]);
    const out = stack.use(device.alloc([rows, hidden], "bf16"));
    const op = { x, delta, weight, out, eps: 1e-5 };
    return () => rmsNorm(op);
  });
}

function siluMulCase(layer: LayerShape, rows: number): KernelCase {
  const n = layer.intermediate;
  return smallCase("silu_mul", layer, rows, rows * n * 6, (device, stack) => {
    const gateUp = randomBf16(device, stack, [rows, 2 * n]);
    const op = { gateUp, out: stack.use(device.alloc([rows, n], "bf16")) };
    return () => siluMul(op);
  });
}

function addCase(layer: LayerShape, rows: number): KernelCase {
  const shape = [rows, layer.hidden];
  return smallCase("add", layer, rows, rows * layer.hidden * 6, (device, stack) => {
    const a = randomBf16(device, stack, shape);
    const b = randomBf16(device, stack, shape);
    const op = { a, b, out: stack.use(device.alloc(shape, "bf16")) };
    return () => add(op);
  });
}

function castCase(layer: LayerShape, rows: number): KernelCase {
  const shape = [rows, layer.hidden];
  return smallCase("cast", layer, rows, rows * layer.hidden * 6, (device, stack) => {
    const source = randomBf16(device, stack, shape);
    const op = { source, out: stack.use(device.alloc(shape, "f32")) };
    return () => cast(op);
  });
}

function copyCase(layer: LayerShape, rows: number): KernelCase {
  const shape = [rows, layer.hidden];
  return smallCase("copy", layer, rows, rows * layer.hidden * 4, (device, stack) => {
    const source = randomBf16(device, stack, shape);
    const op = { source, out: stack.use(device.alloc(shape, "bf16")) };
    return () => copy(op);
  });
}

function ropeTableCase(layer: LayerShape, rows: number): KernelCase {
  const { headDim } = layer;
  return smallCase("rope_table", layer, rows, rows * headDim * 4, (device, stack) => {
    const at = Array.from({ length: rows }, (_, i) => 8000 + i);
    const inverse = Float32Array.from(
      { length: headDim / 2 },
      (_, i) => 1e4 ** ((-2 * i) / headDim),
    );
    const invFreq = stack.use(device.from(inverse, [headDim / 2], "f32"));
    const out = stack.use(device.alloc([rows, headDim], "f32"));
    const op = { positions: int32(device, stack, at), invFreq, out, scale: 1, viewTokens: 0 };
    return () => ropeTable(op);
  });
}

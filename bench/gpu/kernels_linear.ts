// Linear layers over the weights of 16 layers, so that each call reads its weights from memory: alone, and the four of a
// layer in the order of a forward.

import { type Device, linear, type PackedWeight, packedWeightBytes } from "@magicdec/tensor";
import type { KernelCase, PreparedKernel } from "../src/kernels_measure.ts";
import { type LayerShape, layerShapes, randomBf16 } from "../src/kernels_shapes.ts";
import { LayerPool } from "./pool.ts";

const rowCounts = [1, 8, 16, 32, 64, 128, 256, 512];
/** Of a decode step, and of verify passes with gamma 3 and 7 at batch 32 and less. */
const logitRows = [1, 8, 32, 64, 128, 256];

interface LinearShape {
  readonly name: string;
  readonly n: number;
  readonly k: number;
  readonly silu?: boolean;
  readonly residual?: boolean;
  readonly f32?: boolean;
}

function linearsOf(shape: LayerShape): readonly LinearShape[] {
  const { hidden, heads, kvHeads, headDim, intermediate } = shape;
  return [
    { name: "qkv", n: (heads + 2 * kvHeads) * headDim, k: hidden },
    { name: "o", n: hidden, k: heads * headDim, residual: true },
    { name: "gate_up", n: 2 * intermediate, k: hidden, silu: true },
    { name: "down", n: hidden, k: intermediate, residual: true },
  ];
}

const weightBytes = ({ n, k }: LinearShape) => n * k * 2;

/** 16 layers of the larger model, and room for the padding of the packed form. */
const pool = new LayerPool(450e6, 16, 0.02);
/** Copies beyond these only make the first replay longer. */
const mostCopies = 16;

/** Weights of each shape, one set after the other, as many as the pool holds. */
function weightsOf(device: Device, shapes: readonly LinearShape[]): PackedWeight[][] {
  const { memory } = pool.get(device);
  const sizes = shapes.map(({ n, k }) => packedWeightBytes(device, n, k));
  const places = sizes.map((bytes) => Math.ceil(bytes / 4096) * 4096);
  const setBytes = places.reduce((sum, bytes) => sum + bytes, 0);
  const sets = Math.min(mostCopies, Math.floor(memory.bytes / setBytes));
  let at = 0;
  return Array.from({ length: sets }, () =>
    shapes.map(({ n, k }, i): PackedWeight => {
      const data = memory.view([sizes[i] as number], { byteOffset: at });
      at += places[i] as number;
      return { data, n, k, format: "packed_bf16" };
    }),
  );
}

/** The tensors of one linear layer of `rows` rows; the weight comes with each call. */
function operands(device: Device, stack: DisposableStack, shape: LinearShape, rows: number) {
  const { n, k, silu = false, residual = false, f32 = false } = shape;
  const out = stack.use(device.alloc([rows, silu ? n / 2 : n], f32 ? "f32" : "bf16"));
  return {
    x: randomBf16(device, stack, [rows, k]),
    out,
    residual: residual ? out : undefined,
    epilogue: silu ? ("silu_mul" as const) : ("none" as const),
  };
}

function linearCase(model: string, name: string, shapes: readonly LinearShape[], rows: number) {
  const perRow = ({ n, k, silu, f32 }: LinearShape) => k * 2 + (silu ? n / 2 : n) * (f32 ? 4 : 2);
  return {
    op: "linear",
    shape: `${name} m=${rows} ${model}`,
    bytes: shapes.reduce((sum, shape) => sum + weightBytes(shape) + rows * perRow(shape), 0),
    flops: shapes.reduce((sum, { n, k }) => sum + 2 * rows * n * k, 0),
    memoryBytes: pool.layerBytes,
    prepare(device: Device, stack: DisposableStack): PreparedKernel {
      const each = shapes.map((shape) => operands(device, stack, shape, rows));
      const ops = weightsOf(device, shapes).map((weights) =>
        weights.map((weight, i) => ({ ...(each[i] as (typeof each)[number]), weight })),
      );
      const enqueue = (i: number) => {
        for (const op of ops[i] ?? []) linear(op);
      };
      return { enqueue, copies: ops.length, streams: true };
    },
  } satisfies KernelCase;
}

export function linearCases(): KernelCase[] {
  const cases: KernelCase[] = [];
  for (const layer of layerShapes) {
    const model = /^llama-3\.\d-(\d+b)$/.exec(layer.name)?.[1];
    if (model === undefined) continue;
    const shapes = linearsOf(layer);
    for (const rows of rowCounts) {
      cases.push(linearCase(model, "layer", shapes, rows));
      // The parts of the larger model's layer say where its time goes.
      if (model !== "8b") continue;
      for (const shape of shapes) cases.push(linearCase(model, shape.name, [shape], rows));
    }
    const lmHead = { name: "lm_head", n: layer.vocab, k: layer.hidden, f32: true };
    for (const rows of logitRows) cases.push(linearCase(model, lmHead.name, [lmHead], rows));
  }
  return cases;
}

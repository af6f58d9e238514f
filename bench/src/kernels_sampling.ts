// Cases of sampling and acceptance, for a gamma of 4.

import {
  type AcceptRule,
  accept,
  type Device,
  packSamplingParams,
  publish,
  sample,
  type SamplingParams,
  type Tensor,
} from "@magicdec/tensor";
import type { KernelCase } from "./kernels_measure.ts";
import { int32, normals, repeat } from "./kernels_shapes.ts";

const gamma = 4;

const settings: Readonly<Record<string, Omit<SamplingParams, "seed" | "sequence">>> = {
  greedy: { temperature: 0, topK: 0, topP: 1, minP: 0 },
  "temperature 0.6": { temperature: 0.6, topK: 0, topP: 1, minP: 0 },
  "temperature 0.6, top-p 0.9": { temperature: 0.6, topK: 0, topP: 0.9, minP: 0 },
  "temperature 0.6, top-k 40": { temperature: 0.6, topK: 40, topP: 1, minP: 0 },
};

function paramsTensor(device: Device, stack: DisposableStack, b: number, setting: string): Tensor {
  const base = settings[setting];
  if (base === undefined) throw new RangeError(`no setting ${setting}`);
  const rows = Array.from({ length: b }, (_, sequence) => ({ ...base, seed: 1, sequence }));
  return stack.use(device.from(packSamplingParams(rows), [b, 8], "u32"));
}

function inCache(
  op: string,
  shape: string,
  bytes: number,
  enqueue: (device: Device, stack: DisposableStack) => () => void,
): KernelCase {
  return {
    op,
    shape,
    bytes,
    flops: 0,
    memoryBytes: bytes,
    prepare: (device, stack) => ({ enqueue: enqueue(device, stack), copies: 1, streams: false }),
  };
}

/** What a CPU is asked for; a GPU takes larger batches. */
const standard = { b: 8, vocabularies: [4096, 49152, 128256] };

export function samplingCases({ b, vocabularies } = standard): KernelCase[] {
  const draws = vocabularies.flatMap((v) =>
    Object.keys(settings).map((setting) => sampleCase(b, v, setting)),
  );
  const rules = vocabularies.flatMap((v) => [
    acceptCase(b, v, "match"),
    acceptCase(b, v, "rejection"),
  ]);
  return [...draws, ...rules, publishCase()];
}

function sampleCase(b: number, v: number, setting: string): KernelCase {
  return inCache("sample", `b=${b} v=${v} ${setting}`, b * v * 4, (device, stack) => {
    const op = {
      logits: stack.use(device.from(normals(b * v, 2), [b, v], "f32")),
      params: paramsTensor(device, stack, b, setting),
      positions: int32(device, stack, repeat(8000, b)),
      out: stack.use(device.alloc([b, 1], "i32")),
      outStride: 1,
      probsStride: 1,
      stream: "target",
    } as const;
    return () => sample(op);
  });
}

function acceptCase(b: number, v: number, rule: AcceptRule): KernelCase {
  const rows = gamma + 1;
  const bytes = rule === "match" ? b * rows * 8 : b * (rows + gamma) * v * 4;
  return inCache("accept", `b=${b} v=${v} gamma=${gamma} ${rule}`, bytes, (device, stack) => {
    const chain = stack.use(device.alloc([b, gamma + 2], "i32"));
    const common = {
      chain,
      params: paramsTensor(device, stack, b, "temperature 0.6"),
      active: int32(device, stack, repeat(1, b)),
      lens: stack.use(device.alloc([b], "i32")),
      count: stack.use(device.alloc([b], "i32")),
      out: stack.use(device.alloc([b, rows], "i32")),
      rule,
    };
    if (rule === "match") {
      const op = { ...common, targetTokens: stack.use(device.alloc([b, rows], "i32")) };
      return () => accept(op);
    }
    const logits = normals(b * rows * v, 2);
    const op = {
      ...common,
      targetLogits: stack.use(device.from(logits, [b * rows, v], "f32")),
      draftProbs: stack.use(
        device.from(new Float32Array(b * gamma * v).fill(1 / v), [b, gamma, v], "f32"),
      ),
    };
    return () => accept(op);
  });
}

function publishCase(): KernelCase {
  return inCache("publish", "record of 512 B", 1024, (device, stack) => {
    const op = {
      record: stack.use(device.alloc([512], "u8")),
      ring: stack.use(device.alloc([4, 512], "u8", { kind: "host" })),
      counter: stack.use(device.alloc([1], "u32", { kind: "host" })),
    };
    return () => publish(op);
  });
}

// Prefill of whole prompts, logits for the last token of each only.

import { Runner } from "@magicdec/engine";
import type { ModelConfig } from "@magicdec/model";
import { median } from "../src/kernels_measure.ts";
import type { Cell, CellOptions } from "./cells_measure.ts";

export interface PrefillResult extends Cell {
  readonly flops: number;
  readonly teraflopsPerSecond: number;
  readonly tokensPerSecond: number;
  readonly samplesMs: readonly number[];
}

const seed = 1;
const runs = 2;

export async function measurePrefill(cell: Cell, options: CellOptions): Promise<PrefillResult> {
  const { batch, tokens } = cell;
  const { config, device } = options;
  using runner = await Runner.load({
    target: { config, seed },
    device,
    batch,
    maxTokens: tokens + 1,
    maxGamma: 1,
    gpuMemoryUtilization: 0.97,
  });
  const prompts = Array.from({ length: batch }, (_, s) =>
    Int32Array.from({ length: tokens }, (_, i) => (7919 * i + 104729 * s) % config.vocabSize),
  );
  await runner.prefill(prompts.slice(0, 1));
  const samplesMs: number[] = [];
  for (let i = 0; i < runs; i++) samplesMs.push((await runner.prefill(prompts)).ms);
  const flops = prefillFlops(cell, config);
  const ms = median(samplesMs);
  return {
    ...cell,
    flops,
    teraflopsPerSecond: flops / ms / 1e9,
    tokensPerSecond: (1e3 * batch * tokens) / ms,
    samplesMs,
  };
}

/** Two for each weight and token, four for each channel of a causal pair; the output projection for last tokens only. */
function prefillFlops({ batch, tokens }: Cell, config: ModelConfig): number {
  const { layers, hiddenSize, intermediateSize, heads, kvHeads, headDim, vocabSize } = config;
  const attention = hiddenSize * headDim * (2 * heads + 2 * kvHeads);
  const perToken = 2 * layers * (attention + 3 * hiddenSize * intermediateSize);
  const pairs = (tokens * (tokens + 1)) / 2;
  const perSequence = 4 * layers * pairs * heads * headDim + 2 * vocabSize * hiddenSize;
  return batch * (tokens * perToken + perSequence);
}

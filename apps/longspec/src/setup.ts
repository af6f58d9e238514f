import { formatBytes, maxGamma, planText, Runner } from "@magicdec/engine";
import { deviceLine } from "./device_line.ts";
import type { BenchEngine } from "./engine.ts";
import { modelSources } from "./models.ts";
import type { Options } from "./options.ts";
import type { Progress } from "./progress.ts";
import { openTexts, type Texts } from "./texts.ts";

/** A loaded model (pair) with its tokenizer, and what cuts prompts for it. */
export interface Setup extends Disposable {
  engine: BenchEngine;
  tokenizer: Texts["tokenizer"];
  /** Prompts of these lengths, the same for the same seed. */
  prompts(lengths: readonly number[]): Int32Array[];
  /** What computes, e.g. "cpu v4" or "cuda:0 NVIDIA H200". */
  device: string;
  /** Of the CPU; 0 on a GPU. */
  threads: number;
  /** Tokens of a KV page. */
  pageSize: number;
}

/**
 * Loads text, tokenizer and models, cheapest checks first. Errors come from the libraries, each
 * with what was expected, what came and what to do.
 */
export async function setUp(options: Options, progress: Progress): Promise<Setup> {
  const texts = await openTexts(options);
  const loading = progress.phase("load");
  const runner = await loadRunner(options, loading);
  try {
    texts.check(runner.target.config.vocabSize);
  } catch (error) {
    runner.close();
    throw error;
  }
  const { device, memoryPlan } = runner;
  progress.note(deviceLine(device));
  progress.note(`memory: ${planText(memoryPlan)}; free: ${formatBytes(memoryPlan.availableBytes)}`);
  return {
    engine: runner,
    tokenizer: texts.tokenizer,
    prompts: (lengths) => {
      const { prompts, note } = texts.prompts(lengths);
      if (note !== undefined) progress.note(note);
      return prompts;
    },
    device: device.label,
    threads: device.info.threads,
    pageSize: runner.pageSize,
    [Symbol.dispose]: () => runner.close(),
  };
}

/** The engine for the largest work of `options`; checks contexts and memory before it allocates. */
export async function loadRunner(
  options: Options,
  onProgress: (done: number, total: number) => void = () => {},
): Promise<Runner> {
  const { methods } = options;
  return await Runner.load(
    {
      ...(await modelSources(options)),
      device: options.device,
      threads: options.threads,
      batch: options.prefixLens.length,
      maxTokens: options.maxLen,
      pageSize: options.pageSize,
      prefillChunk: options.prefillChunk,
      graphs: options.graphs,
      window: options.windowSize,
      budget: Math.max(...methods.map((method) => method.budget ?? 1), 1),
      maxGamma: Math.max(...methods.map(({ gamma }) => (gamma === "auto" ? maxGamma : gamma)), 1),
      gpuMemoryUtilization: options.gpuMemoryUtilization,
    },
    ({ done, total }) => onProgress(done, total),
  );
}

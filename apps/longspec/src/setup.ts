import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { embeddedDraft, embeddedTarget } from "@magicdec/embedded";
import { Runner } from "@magicdec/engine";
import {
  loadDataset,
  makePrompts,
  requireSameVocabulary,
  requireVocabulary,
  Tokenizer,
} from "@magicdec/text";
import type { BenchEngine } from "./engine.ts";
import type { Options } from "./options.ts";
import type { Progress } from "./progress.ts";

/** A loaded model (pair) with its tokenizer, and what cuts prompts for it. */
export interface Setup extends Disposable {
  engine: BenchEngine;
  tokenizer: Pick<Tokenizer, "decode" | "eosIds">;
  /** Prompts of these lengths, the same for the same seed. */
  prompts(lengths: readonly number[]): Int32Array[];
  /** Backend and kernel level, e.g. "cpu v4". */
  device: string;
  threads: number;
}

/** Folders of the models that `options` asks for; `draft` only where a method needs it. */
export function modelFolders(options: Options): { target: string; draft: string | undefined } {
  const { models, methods } = options;
  const wantsDraft = methods.some((method) => method.method === "model");
  return {
    target: checkpointFolder(models.target ?? embeddedTarget),
    draft: wantsDraft ? checkpointFolder(models.draft ?? embeddedDraft) : undefined,
  };
}

/** MagicDec names the file it converted a checkpoint to; here the folder around it is read. */
function checkpointFolder(path: string): string {
  return /(^|[\\/])model\.(pth|safetensors)$/.test(path) ? dirname(path) : path;
}

/**
 * Loads text, tokenizer and models, cheapest checks first. Errors come from the libraries, each
 * with what was expected, what came and what to do.
 */
export async function setUp(options: Options, progress: Progress): Promise<Setup> {
  const folders = modelFolders(options);
  const tokenizer = await Tokenizer.load(tokenizerFolder(options, folders.target));
  if (folders.draft !== undefined && existsSync(join(folders.draft, "tokenizer.json"))) {
    requireSameVocabulary(tokenizer, await Tokenizer.load(folders.draft));
  }
  const dataset = await loadDataset(options.dataset);
  const cut = (lengths: readonly number[]) =>
    makePrompts({ tokenizer, dataset, batch: lengths.length, lengths, seed: options.seed });
  // Text that is too short should not be found out after a long load.
  cut([Math.max(...options.prefixLens)]);
  const loading = progress.phase("load");
  const runner = await loadRunner(options, loading);
  try {
    requireVocabulary(tokenizer, runner.target.config.vocabSize);
  } catch (error) {
    runner.close();
    throw error;
  }
  return {
    engine: runner,
    tokenizer,
    prompts: (lengths) => {
      const { prompts, note } = cut(lengths);
      if (note !== undefined) progress.note(note);
      return [...prompts];
    },
    device: `${runner.device.backend} ${runner.device.info.level}`,
    threads: runner.device.info.threads,
    [Symbol.dispose]: () => runner.close(),
  };
}

/** The engine for the largest work of `options`; checks contexts and memory before it allocates. */
export function loadRunner(
  options: Options,
  onProgress: (done: number, total: number) => void = () => {},
): Promise<Runner> {
  return Runner.load(
    {
      ...modelFolders(options),
      device: options.device,
      threads: options.threads,
      batch: options.prefixLens.length,
      maxTokens: options.maxLen,
      pageSize: options.pageSize,
      graphs: options.graphs,
      window: options.windowSize,
      budget: Math.max(...options.methods.map((method) => method.budget ?? 1), 1),
    },
    ({ done, total }) => onProgress(done, total),
  );
}

/** `--model-name` is a folder, or a mere name (a Hub id) when the target has a tokenizer. */
function tokenizerFolder(options: Options, target: string): string {
  const { tokenizer } = options.models;
  if (tokenizer === undefined || existsSync(join(tokenizer, "tokenizer.json"))) {
    return tokenizer ?? target;
  }
  return existsSync(join(target, "tokenizer.json")) ? target : tokenizer;
}

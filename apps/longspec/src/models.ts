import { dirname } from "node:path";
import { embeddedDraft, embeddedTarget } from "@magicdec/embedded";
import { type ModelConfig, type ModelSource, parseConfig, presetConfig } from "@magicdec/model";
import { UsageError } from "./errors.ts";
import type { Options } from "./options.ts";

/** The models that `options` asks for; `draft` only where a method needs it. */
export async function modelSources(
  options: Options,
): Promise<{ target: ModelSource; draft: ModelSource | undefined }> {
  const { random } = options.models;
  if (random === undefined) return modelFolders(options);
  const { seed } = options;
  const draft = wantsDraft(options) ? random.draft : undefined;
  return {
    target: { config: await randomConfig(random.target), seed },
    draft: draft === undefined ? undefined : { config: await randomConfig(draft), seed: seed + 1 },
  };
}

/** The same as folders, for models that are read from one. */
export function modelFolders(options: Options): { target: string; draft: string | undefined } {
  const { models } = options;
  return {
    target: checkpointFolder(models.target ?? embeddedTarget),
    draft: wantsDraft(options) ? checkpointFolder(models.draft ?? embeddedDraft) : undefined,
  };
}

/** What a report calls the models. */
export function modelNames(options: Options): { target: string; draft: string | null } {
  const { target, draft, random } = options.models;
  const drafts = wantsDraft(options);
  if (random === undefined) {
    const draftName = drafts ? (draft ?? "embedded draft") : null;
    return { target: target ?? "embedded target", draft: draftName };
  }
  const named = (shapes: string) => `random weights in the shapes of ${shapes}`;
  return {
    target: named(random.target),
    draft: drafts && random.draft !== undefined ? named(random.draft) : null,
  };
}

function wantsDraft({ methods }: Options): boolean {
  return methods.some((method) => method.method === "model");
}

/** A preset by its name, or the config.json at a path. */
async function randomConfig(name: string): Promise<ModelConfig> {
  const preset = presetConfig(name);
  if (preset !== undefined) return preset;
  let json: unknown;
  try {
    json = await Bun.file(name).json();
  } catch (error) {
    const reason = error instanceof Error ? error.message : String(error);
    throw new UsageError(
      `--random-weights: expected a config.json at ${name}, got none: ${reason}`,
    );
  }
  return parseConfig(json, name);
}

/** MagicDec names the file it converted a checkpoint to; here the folder around it is read. */
function checkpointFolder(path: string): string {
  return /(^|[\\/])model\.(pth|safetensors)$/.test(path) ? dirname(path) : path;
}

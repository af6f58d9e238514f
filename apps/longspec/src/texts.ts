import { existsSync } from "node:fs";
import { join } from "node:path";
import { Noise } from "@magicdec/model";
import {
  loadDataset,
  makePrompts,
  requireSameVocabulary,
  requireVocabulary,
  Tokenizer,
} from "@magicdec/text";
import { modelFolders } from "./models.ts";
import type { Options } from "./options.ts";

/** Where prompts come from, and how tokens are read. */
export interface Texts {
  tokenizer: Pick<Tokenizer, "decode" | "eosIds">;
  /** Prompts of these lengths, the same for the same seed; `note` says what was done to get them. */
  prompts(lengths: readonly number[]): { prompts: Int32Array[]; note: string | undefined };
  /** Throws where a model with a vocabulary of this size cannot take the prompts. */
  check(vocabSize: number): void;
}

/** Loads the data set and the tokenizer of `options`; cheap beside loading a model. */
export async function openTexts(options: Options): Promise<Texts> {
  return options.dataset === "random" ? randomTexts(options) : await datasetTexts(options);
}

/** Seeded random tokens, for models without a tokenizer. */
function randomTexts({ seed }: Options): Texts {
  let vocabulary = 0;
  return {
    tokenizer: { decode: (ids) => Array.from(ids).join(" "), eosIds: [] },
    prompts(lengths) {
      const noise = new Noise(seed);
      const prompts = lengths.map((length) =>
        Int32Array.from({ length }, () => noise.integer(vocabulary)),
      );
      return { prompts, note: undefined };
    },
    check(vocabSize) {
      vocabulary = vocabSize;
    },
  };
}

async function datasetTexts(options: Options): Promise<Texts> {
  const folders = modelFolders(options);
  const tokenizer = await Tokenizer.load(tokenizerFolder(options, folders.target));
  if (folders.draft !== undefined && existsSync(join(folders.draft, "tokenizer.json"))) {
    requireSameVocabulary(tokenizer, await Tokenizer.load(folders.draft));
  }
  const dataset = await loadDataset(options.dataset);
  const { seed } = options;
  const cut = (lengths: readonly number[]) => {
    const batch = lengths.length;
    const { prompts, note } = makePrompts({ tokenizer, dataset, batch, lengths, seed });
    return { prompts: [...prompts], note };
  };
  // Text that is too short should not be found out after a long load.
  cut([Math.max(...options.prefixLens)]);
  return {
    tokenizer,
    prompts: cut,
    check: (vocabSize) => requireVocabulary(tokenizer, vocabSize),
  };
}

/** `--model-name` is a folder, or a mere name (a Hub id) when the target has a tokenizer. */
function tokenizerFolder(options: Options, target: string): string {
  const { tokenizer } = options.models;
  if (tokenizer === undefined || existsSync(join(tokenizer, "tokenizer.json"))) {
    return tokenizer ?? target;
  }
  return existsSync(join(target, "tokenizer.json")) ? target : tokenizer;
}

import { TextError } from "./errors.ts";
import type { Tokenizer } from "./tokenizer.ts";

/** A model's vocabulary is padded to a round size: by up to 3 % in models on the Hub. */
const maxPadding = 0.1;

/**
 * Checks that a tokenizer belongs to a model of `vocabSize` logits: every id has a row in the
 * embedding, and nearly every row has an id. Throws TextError.
 */
export function requireVocabulary(tokenizer: Tokenizer, vocabSize: number): void {
  const size = tokenizer.vocabSize;
  if (size <= vocabSize && size >= vocabSize * (1 - maxPadding)) return;
  throw new TextError(
    tokenizer.path,
    `a tokenizer for the model's vocabulary of ${vocabSize} tokens`,
    `one of ${size}`,
    "put the tokenizer.json that came with the model's weights into its folder",
  );
}

export interface VocabularyDifference {
  /** The lowest id that differs. */
  readonly id: number;
  /** What it stands for in the one and the other; undefined where it is beyond the vocabulary. */
  readonly tokens: readonly [string | undefined, string | undefined];
  /** How many ids differ. */
  readonly count: number;
}

/** Compares two vocabularies id by id; undefined where all are equal. */
export function vocabularyDifference(a: Tokenizer, b: Tokenizer): VocabularyDifference | undefined {
  let first: VocabularyDifference | undefined;
  let count = 0;
  for (let id = 0; id < Math.max(a.vocabSize, b.vocabSize); id++) {
    const tokens = [a.token(id), b.token(id)] as const;
    if (tokens[0] === tokens[1]) continue;
    count++;
    first ??= { id, tokens, count };
  }
  return first && { ...first, count };
}

/** Whether each id is the same token in both. */
export function sameVocabulary(a: Tokenizer, b: Tokenizer): boolean {
  return vocabularyDifference(a, b) === undefined;
}

/** Checks that a draft speaks the target's tokens. Throws TextError. */
export function requireSameVocabulary(target: Tokenizer, draft: Tokenizer): void {
  const difference = vocabularyDifference(target, draft);
  if (difference === undefined) return;
  const { id, tokens, count } = difference;
  const [wanted, came] = tokens.map((token) => JSON.stringify(token) ?? "no token");
  throw new TextError(
    draft.path,
    `the target's vocabulary (${target.path}), where id ${id} is ${wanted}`,
    `${came} there, and ${count} ids that differ`,
    "choose a draft trained with the target's tokenizer",
  );
}

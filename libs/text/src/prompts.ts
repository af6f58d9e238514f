import type { Dataset } from "./dataset.ts";
import { TextError } from "./errors.ts";
import type { Tokenizer } from "./tokenizer.ts";

export interface PromptRequest {
  readonly tokenizer: Tokenizer;
  readonly dataset: Dataset;
  /** How many prompts. */
  readonly batch: number;
  /** Tokens of each prompt, BOS included; a shorter list is repeated over the batch. */
  readonly lengths: readonly number[];
  /** Equal seeds cut equal prompts. */
  readonly seed: number;
  /** BOS first, where the tokenizer has one. Default true. */
  readonly bos?: boolean;
}

export interface Prompts {
  readonly prompts: readonly Int32Array[];
  /** Where in the text each was cut, in tokens. */
  readonly offsets: readonly number[];
  /** Tokens in the text that the prompts were cut from. */
  readonly textTokens: number;
  /** What the reader of a result has to know about the prompts, if anything. */
  readonly note: string | undefined;
}

/** A longer text is cut here, unless more is needed: some 2 million tokens, seconds of work. */
const maxCharacters = 8_000_000;
/** More than any vocabulary needs for ordinary text. */
const charactersPerToken = 8;

/**
 * Cuts prompts out of one text, spread over it and, where it is long enough, without overlap.
 * Throws TextError where the text is shorter than the longest prompt.
 */
export function makePrompts(request: PromptRequest): Prompts {
  const { tokenizer, dataset, batch, lengths, seed, bos = true } = request;
  requireCounts(batch, lengths);
  const head = bos && tokenizer.bosId !== null ? [tokenizer.bosId] : [];
  const sizes = Array.from({ length: batch }, (_, i) => {
    return Math.max(0, (lengths[i % lengths.length] ?? 0) - head.length);
  });
  const needed = sizes.reduce((a, b) => a + b, 0);
  const characters = Math.max(maxCharacters, needed * charactersPerToken);
  const tokens = tokenizer.encode(dataset.text.slice(0, characters));
  const longest = Math.max(...sizes);
  if (tokens.length < longest) {
    throw new TextError(
      `data set ${dataset.name}`,
      `at least ${longest} tokens for a prompt of ${longest + head.length}`,
      `${tokens.length}`,
      "name a longer text or ask for shorter prompts",
    );
  }
  const overlap = needed > tokens.length;
  const offsets = overlap
    ? spreadWithOverlap(sizes, tokens.length, seed)
    : spreadApart(sizes, tokens.length - needed, seed);
  const prompts = offsets.map((offset, i) => {
    const prompt = new Int32Array(head.length + (sizes[i] ?? 0));
    prompt.set(head);
    prompt.set(tokens.subarray(offset, offset + (sizes[i] ?? 0)), head.length);
    return prompt;
  });
  const notes = [
    characters < dataset.text.length &&
      `only the first ${characters} characters of ${dataset.name} are used`,
    overlap &&
      `the prompts overlap: they need ${needed} tokens and ${dataset.name} has ${tokens.length}`,
  ].filter((note) => note !== false);
  return { prompts, offsets, textTokens: tokens.length, note: notes.join("; ") || undefined };
}

function requireCounts(batch: number, lengths: readonly number[]): void {
  const fail = (what: string, came: unknown): never => {
    throw new TextError("prompts", `${what} of 1 or more`, String(came), "ask for whole numbers");
  };
  if (!isCount(batch)) fail("a batch", batch);
  if (lengths.length === 0) fail("a list of lengths", "an empty list");
  for (const length of lengths) if (!isCount(length)) fail("a prompt length", length);
}

function isCount(value: number): boolean {
  return Number.isSafeInteger(value) && value >= 1;
}

/** Each prompt gets an equal share of the `spare` tokens and lies anywhere in its share. */
function spreadApart(sizes: readonly number[], spare: number, seed: number): number[] {
  const share = spare / sizes.length;
  let before = 0;
  return sizes.map((size, i) => {
    const offset = before + Math.floor(share * (i + uniform(seed, i)));
    before += size;
    return offset;
  });
}

/** Evenly over all places where each prompt fits; the seed turns the whole pattern. */
function spreadWithOverlap(sizes: readonly number[], tokens: number, seed: number): number[] {
  const turn = uniform(seed, 0);
  return sizes.map((size, i) => {
    return Math.floor((tokens - size + 1) * (((i + turn) / sizes.length) % 1));
  });
}

/** A number in [0, 1) for each seed and index (the finaliser of MurmurHash3). */
function uniform(seed: number, index: number): number {
  let bits = Math.imul(seed | 0, 0x9e3779b1) ^ Math.imul(index + 1, 0x85ebca77);
  bits = Math.imul(bits ^ (bits >>> 16), 0x85ebca6b);
  bits = Math.imul(bits ^ (bits >>> 13), 0xc2b2ae35);
  return ((bits ^ (bits >>> 16)) >>> 0) / 2 ** 32;
}

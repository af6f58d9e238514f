/**
 * Measures of the generated text itself. A model that loops is easy to draft for, so every
 * acceptance figure is shown beside how repetitive the text was and what a draft with no model at
 * all would have reached on it.
 */

type Tokens = ArrayLike<number>;

/**
 * Share of distinct n-grams among all n-grams of each sequence, over all sequences. 1 means nothing
 * repeats; sequences shorter than n count nothing, and 1 is returned when none is long enough.
 */
export function distinctShare(sequences: readonly Tokens[], n = 4): number {
  let all = 0;
  let distinct = 0;
  for (const tokens of sequences) {
    const seen = new Set<string>();
    for (let end = n; end <= tokens.length; end++) seen.add(gramKey(tokens, end, n));
    distinct += seen.size;
    all += Math.max(0, tokens.length - n + 1);
  }
  return all === 0 ? 1 : distinct / all;
}

/**
 * Share of generated tokens that prompt lookup would have guessed: the token that followed the
 * latest earlier occurrence of the last n tokens in prompt + text. No occurrence is a wrong guess.
 * `prompts[i]` belongs to `outputs[i]`.
 */
export function lookupAcceptance(
  prompts: readonly Tokens[],
  outputs: readonly Tokens[],
  n = 3,
): number {
  let guessed = 0;
  let total = 0;
  outputs.forEach((output, sequence) => {
    guessed += lookupHits(prompts[sequence] ?? [], output, n);
    total += output.length;
  });
  return total === 0 ? 0 : guessed / total;
}

function lookupHits(prompt: Tokens, output: Tokens, n: number): number {
  const text = new Int32Array(prompt.length + output.length);
  text.set(prompt, 0);
  text.set(output, prompt.length);
  const follower = new Map<string, number>();
  let hits = 0;
  for (let position = n; position < text.length; position++) {
    const key = gramKey(text, position, n);
    const next = text[position] ?? -1;
    if (position >= prompt.length && follower.get(key) === next) hits++;
    follower.set(key, next);
  }
  return hits;
}

/** The n tokens that end before `end`, as a map key. */
function gramKey(tokens: Tokens, end: number, n: number): string {
  let key = "";
  for (let index = end - n; index < end; index++) key += `${tokens[index]},`;
  return key;
}

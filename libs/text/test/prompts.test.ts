import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import { makePrompts, TextError, Tokenizer } from "../src/index.ts";
import { scratchFolder, wordTokenizer, write } from "./files.ts";

/** A text in which the word is its own place: token i + 1 stands at place i. */
const words = Array.from({ length: 1000 }, (_, i) => `w${i}`);
const folder = scratchFolder();
await write(folder, "tokenizer.json", wordTokenizer(words));
const tokenizer = await Tokenizer.load(folder);
const dataset = { name: "words", text: words.join(" ") };
const cut = (batch: number, lengths: number[], seed = 1, bos = true) =>
  makePrompts({ tokenizer, dataset, batch, lengths, seed, bos });

test("a prompt is BOS and then the text from its offset on", () => {
  const { prompts, offsets, textTokens, note } = cut(3, [5, 10]);
  expect(textTokens).toBe(1000);
  expect(note).toBeUndefined();
  expect(prompts.map(({ length }) => length)).toEqual([5, 10, 5]);
  for (const [i, prompt] of prompts.entries()) {
    const start = offsets[i] ?? -1;
    expect([...prompt]).toEqual([
      0,
      ...Array.from({ length: prompt.length - 1 }, (_, j) => start + j + 1),
    ]);
  }
});

test("without BOS all of the length is text", () => {
  const [prompt] = cut(1, [7], 1, false).prompts;
  expect(prompt).toHaveLength(7);
  expect(prompt).not.toContain(0);
});

test("equal seeds cut equal prompts, others do not", () => {
  expect(cut(4, [20], 3)).toEqual(cut(4, [20], 3));
  expect(cut(4, [20], 3).offsets).not.toEqual(cut(4, [20], 4).offsets);
});

test("prompts that fit beside each other do not overlap, and are spread over the text", () => {
  const request = fc.record({
    batch: fc.integer({ min: 1, max: 20 }),
    lengths: fc.array(fc.integer({ min: 1, max: 50 }), { minLength: 1, maxLength: 5 }),
    seed: fc.integer(),
  });
  fc.assert(
    fc.property(request, ({ batch, lengths, seed }) => {
      const { prompts, offsets } = cut(batch, lengths, seed);
      let end = 0;
      for (const [i, offset] of offsets.entries()) {
        expect(offset).toBeGreaterThanOrEqual(end);
        expect(offset - end).toBeLessThanOrEqual((2 * 1000) / batch + 1);
        end = offset + (prompts[i]?.length ?? 0) - 1;
      }
      expect(end).toBeLessThanOrEqual(1000);
    }),
    { numRuns: 300 },
  );
});

test("prompts that do not fit overlap evenly, and the note says so", () => {
  fc.assert(
    fc.property(fc.integer({ min: 3, max: 40 }), fc.integer(), (batch, seed) => {
      const { prompts, offsets, note } = cut(batch, [600], seed);
      expect(prompts.every(({ length }) => length === 600)).toBe(true);
      expect(note).toBe(`the prompts overlap: they need ${batch * 599} tokens and words has 1000`);
      const sorted = [...offsets].sort((a, b) => a - b);
      const steps = sorted.slice(1).map((offset, i) => offset - (sorted[i] ?? 0));
      const even = 402 / batch;
      for (const step of steps) expect(Math.abs(step - even)).toBeLessThanOrEqual(1);
      expect(sorted.at(-1)).toBeLessThanOrEqual(1000 - 599);
    }),
    { numRuns: 100 },
  );
});

test("a long text is cut, and the note says so", () => {
  const long = { name: "long", text: `${dataset.text}${" ".repeat(8_000_000)}beyond` };
  const { note, textTokens } = makePrompts({
    tokenizer,
    dataset: long,
    batch: 1,
    lengths: [10],
    seed: 1,
  });
  expect(note).toBe("only the first 8000000 characters of long are used");
  expect(textTokens).toBe(1000);
}, 30_000);

describe("what cannot be cut", () => {
  test("says how many tokens there are and how many are needed", () => {
    expect(() => cut(2, [10, 1002])).toThrow(
      "data set words: expected at least 1001 tokens for a prompt of 1002, got 1000; " +
        "name a longer text or ask for shorter prompts",
    );
    expect(cut(1, [1001]).prompts[0]).toHaveLength(1001);
  });

  test.each([
    [0, [5], /prompts: expected a batch of 1 or more, got 0/],
    [1.5, [5], /a batch of 1 or more, got 1.5/],
    [1, [], /a list of lengths of 1 or more, got an empty list/],
    [2, [5, -1], /a prompt length of 1 or more, got -1/],
    [1, [Number.NaN], /a prompt length of 1 or more, got NaN/],
  ])("batch %p, lengths %p", (batch, lengths, says) => {
    expect(() => cut(batch, lengths)).toThrow(TextError);
    expect(() => cut(batch, lengths)).toThrow(says);
  });
});

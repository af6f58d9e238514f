import { describe, expect, test } from "bun:test";
import { deviation, distinctShare, lookupAcceptance, mean } from "../src/index.ts";

describe("mean and deviation", () => {
  test("are those of a sample", () => {
    expect(mean([2, 4, 4, 4, 5, 5, 7, 9])).toBe(5);
    expect(deviation([2, 4, 4, 4, 5, 5, 7, 9])).toBeCloseTo(Math.sqrt(32 / 7), 12);
  });

  test("of nothing and of one value are 0", () => {
    expect([mean([]), deviation([]), deviation([3])]).toEqual([0, 0, 0]);
  });
});

describe("distinct 4-grams", () => {
  test("a text without repetition has 1, a loop has its period's share", () => {
    const fresh = Int32Array.from({ length: 50 }, (_, i) => i);
    const loop = Int32Array.from({ length: 103 }, (_, i) => i % 5);
    expect(distinctShare([fresh])).toBe(1);
    expect(distinctShare([loop])).toBeCloseTo(5 / 100, 12);
    expect(distinctShare([fresh, loop])).toBeCloseTo((47 + 5) / (47 + 100), 12);
  });

  test("texts shorter than 4 tokens count nothing", () => {
    expect(distinctShare([Int32Array.of(1, 2, 3), new Int32Array()])).toBe(1);
  });

  test("tokens are not glued: 1,23 is not 12,3", () => {
    expect(distinctShare([[1, 23, 4, 5, 12, 3, 4, 5]], 4)).toBe(1);
  });
});

describe("lookup control", () => {
  test("guesses what followed the same three tokens last", () => {
    const prompt = [1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3];
    expect(lookupAcceptance([prompt], [[8]])).toBe(1);
    expect(lookupAcceptance([prompt], [[7]])).toBe(0);
  });

  test("counts positions without an earlier occurrence as misses", () => {
    expect(lookupAcceptance([[1, 2, 3, 4]], [[5, 6, 7, 8]])).toBe(0);
  });

  test("a loop is guessed after its first round", () => {
    const output = Array.from({ length: 20 }, (_, i) => i % 4);
    // The first round (4) and the three tokens that wait for a known 3-gram to return are misses.
    expect(lookupAcceptance([[]], [output])).toBeCloseTo(13 / 20, 12);
  });

  test("agrees with a plain search through the text", () => {
    const rounds = 20;
    for (let round = 0; round < rounds; round++) {
      const random = () => Math.floor(Math.random() * 3);
      const prompt = Array.from({ length: round }, random);
      const output = Array.from({ length: 40 }, random);
      expect(lookupAcceptance([prompt], [output])).toBeCloseTo(searched(prompt, output), 12);
    }
  });
});

function searched(prompt: number[], output: number[]): number {
  const text = [...prompt, ...output];
  let hits = 0;
  for (let position = Math.max(3, prompt.length); position < text.length; position++) {
    const last = text.slice(position - 3, position).join();
    for (let start = position - 4; start >= 0; start--) {
      if (text.slice(start, start + 3).join() !== last) continue;
      if (text[start + 3] === text[position]) hits++;
      break;
    }
  }
  return hits / output.length;
}

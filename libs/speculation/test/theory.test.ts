import { describe, expect, test } from "bun:test";
import fc from "fast-check";
import {
  acceptanceLength,
  acceptanceRateFromLength,
  bestGamma,
  predictedSpeedup,
  verifyTimeLine,
} from "../src/index.ts";

const gammas = fc.integer({ min: 1, max: 16 });

describe("the equation of speculation", () => {
  test("Omega is the expected length of a chain judged draft by draft", () => {
    fc.assert(
      fc.property(gammas, fc.double({ min: 0, max: 1, noNaN: true }), (gamma, alpha) => {
        let expected = 0;
        for (let i = 0; i < gamma; i++) expected += (i + 1) * alpha ** i * (1 - alpha);
        expected += (gamma + 1) * alpha ** gamma;
        expect(acceptanceLength(gamma, alpha)).toBeCloseTo(expected, 9);
      }),
    );
  });

  test("the inverse gives the rate back", () => {
    fc.assert(
      fc.property(gammas, fc.double({ min: 0.01, max: 0.99, noNaN: true }), (gamma, alpha) => {
        const length = acceptanceLength(gamma, alpha);
        expect(acceptanceRateFromLength(gamma, length)).toBeCloseTo(alpha, 6);
      }),
    );
    expect(acceptanceRateFromLength(4, 1)).toBe(0);
    expect(acceptanceRateFromLength(4, 5)).toBe(1);
    expect(acceptanceRateFromLength(0, 1)).toBe(0);
  });

  test("reproduces a row of the paper: Llama-3.1-8B, SnapKV, 100K tokens, batch 41, gamma 11", () => {
    const times = { msTarget: 25.83, msDraft: 53.98 / 11, msVerify: () => 29.93, msOther: 0.57 };
    expect(predictedSpeedup(11, 0.928, times)).toBeCloseTo(2.51, 1);
  });

  test("the best gamma is the best of all, and 0 where drafting loses", () => {
    const times = { msTarget: 10, msDraft: 1, msVerify: (gamma: number) => 10 + 0.2 * gamma };
    const best = bestGamma(0.85, times);
    for (let gamma = 1; gamma <= 16; gamma++) {
      expect(predictedSpeedup(gamma, 0.85, times)).toBeLessThanOrEqual(best.speedup);
    }
    expect(bestGamma(0.5, { msTarget: 10, msDraft: 9, msVerify: () => 11 })).toEqual({
      gamma: 0,
      speedup: 1,
    });
  });

  test("a line through two verify times", () => {
    const line = verifyTimeLine({ gamma: 2, ms: 10 }, { gamma: 6, ms: 12 });
    expect(line(4)).toBeCloseTo(11, 12);
    expect(verifyTimeLine({ gamma: 2, ms: 10 }, { gamma: 6, ms: 9 })(8)).toBe(10);
  });

  test("says what it wants", () => {
    expect(() => acceptanceLength(1.5, 0.5)).toThrow("gamma: expected an integer >= 0, got 1.5");
    expect(() => acceptanceLength(2, 1.5)).toThrow("expected a number in [0, 1], got 1.5");
  });
});

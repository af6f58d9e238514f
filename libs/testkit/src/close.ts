// Comparison of results with references. A failure names the worst element, both values and the
// seed of the run.

import { testSeed } from "./random.ts";

type Numbers = ArrayLike<number>;

export interface Closeness {
  /** Allowed |actual - expected| whatever the size of expected. */
  absolute?: number;
  /** Allowed |actual - expected| as a share of |expected|. */
  relative?: number;
  /** What is compared; it starts the message. */
  label?: string;
  /** Shape of the array, so that the message can name an index a dimension. */
  shape?: readonly number[];
}

/** The largest absolute and relative difference of two arrays. */
export function largestDifference(
  actual: Numbers,
  expected: Numbers,
): { absolute: number; relative: number; index: number } {
  const worst = { absolute: 0, relative: 0, index: 0 };
  for (let i = 0; i < expected.length; i++) {
    const difference = Math.abs((actual[i] as number) - (expected[i] as number));
    if (difference > worst.absolute || Number.isNaN(difference)) {
      worst.absolute = difference;
      worst.index = i;
    }
    worst.relative = Math.max(worst.relative, difference / Math.abs(expected[i] as number) || 0);
  }
  return worst;
}

/**
 * Throws unless |actual - expected| <= absolute + relative * |expected| for every element (bf16's
 * half step is 2^-9).
 */
export function expectClose(actual: Numbers, expected: Numbers, options: Closeness = {}): void {
  const { absolute = 1e-6, relative = 2 ** -8, label = "values", shape } = options;
  requireLength(actual, expected, label);
  let failures = 0;
  let worst = -1;
  let worstExcess = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < expected.length; i++) {
    const a = actual[i] as number;
    const e = expected[i] as number;
    if (Object.is(a, e) || a === e) continue;
    const excess = Math.abs(a - e) - (absolute + relative * Math.abs(e));
    if (excess <= 0) continue;
    failures++;
    if (Number.isNaN(excess) || excess > worstExcess) {
      worst = i;
      worstExcess = Number.isNaN(excess) ? Number.POSITIVE_INFINITY : excess;
    }
  }
  if (failures === 0) return;
  const difference = Math.abs((actual[worst] as number) - (expected[worst] as number));
  throw new Error(
    `${label}: ${failures} of ${expected.length} elements are off by more than ${absolute} + ` +
      `${relative} * |expected|; the worst is ${place(worst, shape)}: expected ` +
      `${expected[worst]}, got ${actual[worst]} (by ${difference.toExponential(3)}) ${seedNote()}`,
  );
}

/**
 * Throws unless both arrays hold the same values, NaN included; -0 and 0 differ, as their bits do.
 */
export function expectSame(
  actual: Numbers,
  expected: Numbers,
  label = "values",
  shape?: readonly number[],
): void {
  requireLength(actual, expected, label);
  for (let i = 0; i < expected.length; i++) {
    if (Object.is(actual[i], expected[i])) continue;
    let differing = 0;
    for (let j = i; j < expected.length; j++) {
      if (!Object.is(actual[j], expected[j])) differing++;
    }
    throw new Error(
      `${label}: ${differing} of ${expected.length} elements differ; the first is ` +
        `${place(i, shape)}: expected ${expected[i]}, got ${actual[i]} ${seedNote()}`,
    );
  }
}

/** Added to failures, so that they can be repeated. */
export function seedNote(): string {
  return `(MAGICDEC_TEST_SEED=${testSeed})`;
}

function requireLength(actual: Numbers, expected: Numbers, label: string): void {
  if (actual.length === expected.length) return;
  throw new Error(`${label}: expected ${expected.length} elements, got ${actual.length}`);
}

function place(index: number, shape: readonly number[] | undefined): string {
  if (shape === undefined) return `[${index}]`;
  const at: number[] = [];
  let rest = index;
  for (const size of shape.toReversed()) {
    at.unshift(rest % size);
    rest = Math.floor(rest / size);
  }
  return `[${at.join(", ")}]`;
}

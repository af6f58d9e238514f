// Seeded random inputs. Each run takes a fresh seed, which every failure message names;
// MAGICDEC_TEST_SEED replays one.

import { roundToBf16 } from "@magicdec/tensor";

/** The seed of this run: MAGICDEC_TEST_SEED where it is set, otherwise a new one. */
export const testSeed = seedFromEnvironment(Bun.env.MAGICDEC_TEST_SEED);

function seedFromEnvironment(text: string | undefined): number {
  if (text === undefined || text === "") return (Math.random() * 2 ** 32) >>> 0;
  const seed = Number(text);
  if (!Number.isInteger(seed) || seed < 0 || seed >= 2 ** 32) {
    throw new Error(`MAGICDEC_TEST_SEED: expected an integer from 0 to 2^32 - 1, got "${text}"`);
  }
  return seed;
}

/** A splitmix32 generator: small, fast and good enough to draw test inputs. */
export class Random {
  #state: number;

  /** `stream` tells generators of one seed apart. */
  constructor(seed: number = testSeed, stream = 0) {
    this.#state = (seed ^ Math.imul(stream, 0x9e3779b1)) >>> 0;
  }

  /** A uniform 32-bit integer. */
  u32(): number {
    this.#state = (this.#state + 0x9e3779b9) >>> 0;
    let x = this.#state;
    x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
    x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
    return (x ^ (x >>> 15)) >>> 0;
  }

  /** Uniform in [0, 1). */
  uniform(): number {
    return this.u32() / 2 ** 32;
  }

  /** A uniform integer in [low, high]. */
  integer(low: number, high: number): number {
    return low + Math.floor(this.uniform() * (high - low + 1));
  }

  /** One of `choices`. */
  pick<T>(choices: readonly T[]): T {
    const choice = choices[this.integer(0, choices.length - 1)];
    if (choice === undefined) throw new Error("pick: expected at least one choice, got none");
    return choice;
  }

  /** A standard normal (Box-Muller). */
  normal(): number {
    const radius = Math.sqrt(-2 * Math.log(1 - this.uniform()));
    return radius * Math.cos(2 * Math.PI * this.uniform());
  }

  /** `count` normals times `scale`, as f32. */
  normals(count: number, scale = 1): Float32Array {
    const out = new Float32Array(count);
    for (let i = 0; i < count; i++) out[i] = scale * this.normal();
    return out;
  }

  /**
   * `count` normals times `scale` that bf16 holds exactly, so that a device and a reference start
   * from the same numbers.
   */
  bf16(count: number, scale = 1): Float32Array {
    return roundToBf16(this.normals(count, scale));
  }

  /** Shuffles in place (Fisher-Yates) and returns its argument. */
  shuffle<T>(items: T[]): T[] {
    for (let i = items.length - 1; i > 0; i--) {
      const j = this.integer(0, i);
      const swapped = items[i] as T;
      items[i] = items[j] as T;
      items[j] = swapped;
    }
    return items;
  }

  /** The integers 0 .. count - 1 in random order. */
  permutation(count: number): number[] {
    return this.shuffle(Array.from({ length: count }, (_, i) => i));
  }
}

import { copy, type Device, type Tensor, toBf16 } from "@magicdec/tensor";

/** Seeded random numbers (splitmix32): the same on every machine. */
export class Noise {
  #state: number;

  constructor(seed: number) {
    this.#state = seed >>> 0;
  }

  /** A uniform integer in [0, below). */
  integer(below: number): number {
    return Math.floor(this.#uniform() * below);
  }

  /** `count` normals times `scale` (Box-Muller). */
  normals(count: number, scale: number): Float32Array {
    const out = new Float32Array(count);
    for (let i = 0; i < count; i += 2) {
      const radius = scale * Math.sqrt(-2 * Math.log(1 - this.#uniform()));
      const angle = 2 * Math.PI * this.#uniform();
      out[i] = radius * Math.cos(angle);
      if (i + 1 < count) out[i + 1] = radius * Math.sin(angle);
    }
    return out;
  }

  #uniform(): number {
    this.#state = (this.#state + 0x9e3779b9) >>> 0;
    let x = this.#state;
    x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
    x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
    return ((x ^ (x >>> 15)) >>> 0) / 2 ** 32;
  }
}

const poolElements = 4 << 20;
/** Elements that one cut takes at most; the rest of the pool is room for where it begins. */
const cutElements = poolElements / 2;
/** Cuts begin at multiples of this, so that every kernel finds them aligned. */
const cutStep = 64;
/** One copy takes many overlapping runs out of this many elements. */
const windowElements = (3 * poolElements) / 4;
const runBytes = 1 << 20;
/** Bytes from the beginning of one run to that of the next. */
const runStep = 9 << 12;
const runsInWindow = 1 + Math.floor((2 * windowElements - runBytes) / runStep);

/**
 * Seeded normals on the device, from which tensors of any size are filled in no time: pieces of it, each from another place. For timing, where values
 * have to be as varied as real ones and mean nothing.
 */
export class NoisePool implements Disposable {
  readonly #values: Tensor;
  readonly #noise: Noise;

  constructor(device: Device, seed: number, scale: number) {
    this.#noise = new Noise(seed);
    const values = toBf16(this.#noise.normals(poolElements, scale));
    this.#values = device.from(values, [poolElements], "bf16");
  }

  /** The most rows of `columns` elements that `cut` gives. */
  static rowsOf(columns: number): number {
    return Math.floor(cutElements / columns);
  }

  /** A borrowed (rows, columns) bf16 tensor from somewhere in the pool. */
  cut(rows: number, columns: number): Tensor {
    const start = cutStep * this.#noise.integer((poolElements - rows * columns) / cutStep);
    return this.#values.view([rows, columns], { byteOffset: 2 * start });
  }

  /** Enqueues filling all of `out`, whatever its dtype is. */
  fill(out: Tensor): void {
    for (let at = 0; at < out.bytes;) {
      const left = out.bytes - at;
      const bytes = Math.min(runBytes, left);
      const count = Math.max(1, Math.min(runsInWindow, Math.floor(left / runBytes)));
      const start = cutStep * this.#noise.integer((poolElements - windowElements) / cutStep);
      copy({
        source: this.#values.view([windowElements], { byteOffset: 2 * start }),
        out: out.view([count, bytes], { byteOffset: at, dtype: "u8" }),
        bytes,
        sourceStride: runStep,
        outStride: bytes,
        count,
      });
      at += count * bytes;
    }
  }

  [Symbol.dispose](): void {
    this.#values.dispose();
  }
}

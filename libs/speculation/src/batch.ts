import type { Device, Tensor } from "@magicdec/tensor";
import { copy } from "@magicdec/tensor";

/** How one sequence samples. Temperature 0 is greedy; topK 0, topP 1 and minP 0 filter nothing. */
export interface SequenceSampling {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  /** Any integer up to 2^53; with `sequence` it keys every draw. */
  readonly seed: number;
  /** Keys this sequence's noise, so that its tokens do not depend on its place in the batch. */
  readonly sequence: number;
}

/**
 * Tokens that a row without a sequence pretends to have: few, but enough that no position of a draft's first step or of a selection is negative.
 */
const parkedLength = 2;

/**
 * What the device keeps of a running batch; rows 0 .. b - 1 are alive. `chain` (batch, gamma + 2) i32 holds, per row, the token before the
 * current one, the current token (whose KV is not yet in the cache) and the drafts.
 */
export class BatchState implements Disposable {
  readonly chain: Tensor;
  /** (batch) i32: tokens whose exact KV is in the target's cache. */
  readonly lens: Tensor;
  /** (batch) i32: 1 for rows that hold a sequence. A row leaves by being replaced by the last one, which is then parked. */
  readonly active: Tensor;
  /** (batch, 8) u32 SamplingParams. */
  readonly params: Tensor;

  constructor(
    device: Device,
    readonly batch: number,
    readonly gamma: number,
  ) {
    this.chain = device.alloc([batch, gamma + 2], "i32");
    this.lens = device.alloc([batch], "i32");
    this.active = device.alloc([batch], "i32");
    this.params = device.alloc([batch, 8], "u32");
  }

  /** Enqueues: a new run of the first `rows` rows; the others are parked. */
  begin(rows: number): void {
    this.active.write(Int32Array.from({ length: this.batch }, (_, row) => (row < rows ? 1 : 0)));
    this.lens.write(new Int32Array(this.batch).fill(parkedLength));
  }

  /** Enqueues: row `row` holds no sequence. A forward that computes it all the same decides nothing. */
  park(row: number): void {
    this.active.write(Int32Array.of(0), row);
    this.lens.write(Int32Array.of(parkedLength), row);
  }

  /** Enqueues the sampling parameters of row `row`. */
  setSampling(row: number, sampling: SequenceSampling): void {
    const words = new Uint32Array(8);
    const floats = new Float32Array(words.buffer);
    floats[0] = sampling.temperature;
    floats[1] = sampling.topP;
    floats[2] = sampling.minP;
    words[3] = sampling.topK;
    words[4] = sampling.seed >>> 0;
    words[5] = Math.floor(sampling.seed / 2 ** 32) >>> 0;
    words[6] = sampling.sequence;
    this.params.write(words, row * 8);
  }

  /** Enqueues the length of row `row` and the last prompt token; the current token is sampled into the chain on the device. */
  setPrompt(row: number, length: number, lastToken: number): void {
    this.lens.write(Int32Array.of(length), row);
    this.chain.write(Int32Array.of(lastToken), row * (this.gamma + 2));
  }

  /** Chain columns from `column` on as ids of r tokens a row; the row stride is gamma + 2. */
  ids(b: number, column: number, r: number): Tensor {
    return this.chain.view([b, r], { byteOffset: 4 * column });
  }

  get stride(): number {
    return this.gamma + 2;
  }

  /** Enqueues: row `to` takes over row `from`. */
  moveRow(from: number, to: number): void {
    for (const tensor of [this.chain, this.lens, this.params]) {
      copy({ source: tensor.rows(from, from + 1), out: tensor.rows(to, to + 1) });
    }
  }

  [Symbol.dispose](): void {
    for (const tensor of [this.chain, this.lens, this.active, this.params]) tensor.dispose();
  }
}

/** The constant arrays of a forward with r new tokens in each of up to `batch` rows, and room for what is computed from the lengths. */
export class RowLayout implements Disposable {
  readonly #rowSeq: Tensor;
  readonly #qStart: Tensor;
  readonly #lastRows: Tensor;
  readonly #positions: Tensor;
  readonly #kvLen: Tensor;

  constructor(
    device: Device,
    readonly batch: number,
    /** New tokens a row. */
    readonly r: number,
  ) {
    const i32 = (size: number, value: (i: number) => number) =>
      device.from(
        Int32Array.from({ length: size }, (_, i) => value(i)),
        [size],
        "i32",
      );
    this.#rowSeq = i32(batch * r, (i) => Math.floor(i / r));
    this.#qStart = i32(batch + 1, (i) => i * r);
    this.#lastRows = i32(batch, (i) => i * r + r - 1);
    this.#positions = device.alloc([batch * r], "i32");
    this.#kvLen = device.alloc([batch], "i32");
  }

  /** The arrays for the first `b` rows. */
  of(b: number) {
    return {
      rowSeq: this.#rowSeq.rows(0, b * this.r),
      qStart: this.#qStart.rows(0, b + 1),
      /** (b, 1) i32: the last of each sequence's rows. */
      lastRows: this.#lastRows.view([b, 1]),
      positions: this.#positions.rows(0, b * this.r),
      kvLen: this.#kvLen.rows(0, b),
    };
  }

  [Symbol.dispose](): void {
    const owned = [this.#rowSeq, this.#qStart, this.#lastRows, this.#positions, this.#kvLen];
    for (const tensor of owned) tensor.dispose();
  }
}

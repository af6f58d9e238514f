import { PagedKv, type PagedKvOptions, type PageHold, QueryRing } from "@magicdec/cache";
import { type Model, type NoisePool, Workspace } from "@magicdec/model";
import type { Device, Tensor } from "@magicdec/tensor";

/** Largest gamma there is. */
export const maxGamma = 16;

export interface ResidentOptions {
  readonly device: Device;
  readonly model: Model;
  readonly batch: number;
  /** Largest gamma of any run. */
  readonly maxGamma: number;
  readonly kv: PagedKvOptions;
  /** Rows of the largest forward. */
  readonly maxRows: number;
  /** Observation window of the query ring, tokens. */
  readonly window: number;
}

/** A model with what it needs to run a batch: its pages, its kept queries, its activations, and what its prefill left. */
export class Resident implements Disposable {
  readonly model: Model;
  readonly cache: PagedKv;
  readonly workspace: Workspace;
  readonly queries: QueryRing;
  /** (batch, vocab) f32: logits of each prompt's last token. */
  readonly promptLogits: Tensor;
  readonly #device: Device;
  readonly #options: ResidentOptions;
  #savedQueries: QueryRing | undefined;
  #holds: PageHold[] = [];

  constructor(options: ResidentOptions) {
    const { device, model, batch, kv, maxRows, maxGamma, window } = options;
    const { layers, heads, headDim, vocabSize } = model.config;
    this.#device = device;
    this.#options = options;
    this.model = model;
    this.cache = new PagedKv(device, kv);
    this.workspace = new Workspace(device, model.config, maxRows, this.cache);
    this.queries = new QueryRing(device, { layers, batch, heads, headDim, window, maxGamma });
    this.promptLogits = device.alloc([batch, vocabSize], "f32");
  }

  /** Remembers the prefilled state of the first `rows` rows: decode runs may start from it again and again. */
  hold(rows: number): void {
    this.forget();
    this.#holds = Array.from({ length: rows }, (_, row) => this.cache.hold(row));
    this.#savedQueries ??= new QueryRing(this.#device, this.queries.options);
    this.queries.copyTo(this.#savedQueries, rows);
  }

  /** Back to the held state; without one the rows stay as they are. */
  rewind(): void {
    for (const [row, hold] of this.#holds.entries()) this.cache.restore(row, hold);
    if (this.#holds.length > 0) this.#savedQueries?.copyTo(this.queries, this.#holds.length);
  }

  /** Drops the held state. */
  forget(): void {
    for (const hold of this.#holds) this.cache.drop(hold);
    this.#holds = [];
  }

  /** Enqueues: instead of a prefill of prompts of these lengths, their rows hold noise. */
  fillWithNoise(lengths: readonly number[], noise: NoisePool): void {
    for (const [row, length] of lengths.entries()) this.cache.ensure(row, length);
    for (const out of [this.cache.ref.data, this.promptLogits, ...this.queries.layers]) {
      noise.fill(out);
    }
  }

  /** Gives back the pages of every row. */
  releaseRows(): void {
    for (let row = 0; row < this.#options.batch; row++) this.cache.release(row);
  }

  [Symbol.dispose](): void {
    this.cache.dispose();
    this.workspace[Symbol.dispose]();
    this.queries.dispose();
    this.#savedQueries?.dispose();
    this.promptLogits.dispose();
  }
}

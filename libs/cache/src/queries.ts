import type { Device, Tensor } from "@magicdec/tensor";
import { copy, keepQueries } from "@magicdec/tensor";

export interface QueryRingOptions {
  readonly layers: number;
  readonly batch: number;
  readonly heads: number;
  readonly headDim: number;
  /** Observation window in tokens. */
  readonly window: number;
  /** Largest gamma: a verify pass also writes the queries of gamma drafted tokens that may be rejected. */
  readonly maxGamma: number;
}

/** Device bytes of a ring. */
export function queryRingBytes(options: QueryRingOptions): number {
  const { layers, batch, heads, headDim } = options;
  return 2 * layers * batch * slotsOf(options) * heads * headDim;
}

/** A verify pass must never write over queries that are still observed. */
function slotsOf({ window, maxGamma }: QueryRingOptions): number {
  return window + maxGamma + 1;
}

/**
 * The last queries of every sequence and layer, which a scoring policy (SnapKV) observes. Slot = position % ring; the ring is longer than the
 * window by a verify pass, so rejected rows never fall on slots that are still observed.
 */
export class QueryRing implements Disposable {
  /** Slots a sequence. */
  readonly slots: number;
  /** Per layer (batch, slots, heads, headDim) bf16. */
  readonly layers: readonly Tensor[];

  constructor(
    device: Device,
    readonly options: QueryRingOptions,
  ) {
    this.slots = slotsOf(options);
    this.layers = Array.from({ length: options.layers }, () =>
      device.alloc([options.batch, this.slots, options.heads, options.headDim], "bf16"),
    );
  }

  get bytes(): number {
    return this.layers.reduce((sum, tensor) => sum + tensor.bytes, 0);
  }

  /** Enqueues: keeps the queries q (rows, heads, headDim) of one layer. */
  keep(layer: number, q: Tensor, rowSeq: Tensor, positions: Tensor): void {
    keepQueries({ q, rowSeq, positions, out: this.#layer(layer) });
  }

  /** Enqueues: row `to` takes over row `from`'s queries. */
  moveRow(from: number, to: number): void {
    for (const tensor of this.layers) {
      copy({ source: tensor.rows(from, from + 1), out: tensor.rows(to, to + 1) });
    }
  }

  /** Enqueues a copy of the first `rows` rows' queries into `other`, a ring of the same shape. */
  copyTo(other: QueryRing, rows: number): void {
    for (const [i, tensor] of this.layers.entries()) {
      copy({ source: tensor.rows(0, rows), out: other.#layer(i).rows(0, rows) });
    }
  }

  dispose(): void {
    for (const tensor of this.layers) tensor.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #layer(layer: number): Tensor {
    const tensor = this.layers[layer];
    if (tensor === undefined) {
      throw new RangeError(
        `query ring: expected a layer in 0 .. ${this.layers.length - 1}, got ${layer}`,
      );
    }
    return tensor;
  }
}

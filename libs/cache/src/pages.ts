import type { Device, KvCacheRef, Tensor } from "@magicdec/tensor";

/** Shape of a paged KV pool; sizes in tokens where not said otherwise. */
export interface PagedKvOptions {
  readonly layers: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly pageSize: number;
  /** Pages of the pool, shared by all sequences. */
  readonly pages: number;
  /** Rows of the block table. */
  readonly batch: number;
  /** Columns of the block table: the longest sequence in pages. */
  readonly maxPagesPerSequence: number;
  /** One page more, which is nobody's: rows that hold no sequence may write there (`park`). */
  readonly parking?: boolean;
}

/** Bytes of the pool (bf16 K and V). */
export function pagedKvBytes(options: PagedKvOptions): number {
  const { layers, kvHeads, pageSize, headDim } = options;
  return layers * pagesOf(options) * 2 * kvHeads * pageSize * headDim * 2;
}

function pagesOf({ pages, parking = false }: PagedKvOptions): number {
  return parking ? pages + 1 : pages;
}

/** The pool has no free page left. Nothing was changed by the call that threw. */
export class OutOfPagesError extends Error {
  override readonly name = "OutOfPagesError";
  constructor(needed: number, free: number, total: number, pageSize: number) {
    super(
      `KV pages: expected ${needed} free pages of ${pageSize} tokens, got ${free} of ${total}; ` +
        `raise the batch's token capacity or wait until a sequence ends`,
    );
  }
}

/** Pages kept alive apart from the row that uses them. */
export interface PageHold {
  readonly pages: readonly number[];
}

/**
 * One pool of KV pages and the block table (batch, maxPagesPerSequence) that maps each row's tokens to pages.
 * Host side is a free list; the device sees only the table, so growing a sequence is one small enqueued write, and rolling back is
 * length arithmetic elsewhere. Pages are counted by reference, so that sequences may come to share a prefix.
 */
export class PagedKv implements Disposable {
  readonly ref: KvCacheRef;
  /** (batch, maxPagesPerSequence) i32 on the device. */
  readonly blockTable: Tensor;
  readonly #free: number[] = [];
  readonly #references: Uint16Array;
  readonly #pagesOf: number[][];

  constructor(
    device: Device,
    readonly options: PagedKvOptions,
  ) {
    const { layers, kvHeads, headDim, pageSize, pages, batch, maxPagesPerSequence } = options;
    const all = pagesOf(options);
    const data = device.alloc([layers, all, 2 * kvHeads, pageSize * headDim], "bf16");
    this.ref = { data, layers, pages: all, pageSize, kvHeads, headDim };
    this.blockTable = device.alloc([batch, maxPagesPerSequence], "i32");
    this.#references = new Uint16Array(pages);
    this.#pagesOf = Array.from({ length: batch }, () => []);
    for (let page = pages - 1; page >= 0; page--) this.#free.push(page);
  }

  get freePages(): number {
    return this.#free.length;
  }

  /** Tokens that row `row` can hold now. */
  capacityTokens(row: number): number {
    return this.#pages(row).length * this.options.pageSize;
  }

  /** Grows row `row` to hold at least `tokens` tokens. Throws {@link OutOfPagesError} and changes nothing when the pool cannot. */
  ensure(row: number, tokens: number): void {
    const { pageSize, pages, maxPagesPerSequence } = this.options;
    const owned = this.#pages(row);
    const wanted = Math.ceil(tokens / pageSize);
    const needed = wanted - owned.length;
    if (needed <= 0) return;
    if (wanted > maxPagesPerSequence) {
      throw new RangeError(
        `KV pages: expected a sequence of at most ${maxPagesPerSequence * pageSize} tokens, got ${tokens}`,
      );
    }
    if (needed > this.#free.length) {
      throw new OutOfPagesError(needed, this.#free.length, pages, pageSize);
    }
    const added = new Int32Array(needed);
    for (let i = 0; i < needed; i++) {
      const page = this.#free.pop() as number;
      this.#references[page] = 1;
      added[i] = page;
    }
    this.blockTable.write(added, row * maxPagesPerSequence + owned.length);
    owned.push(...added);
  }

  /** Gives row `row`'s pages back. Kernels already enqueued may still write them: the stream is in order, so a new owner writes later. */
  release(row: number): void {
    const owned = this.#pages(row);
    this.#unreference(owned);
    owned.length = 0;
  }

  /**
   * Gives row `row`'s pages back and lets the row stand on the page that is nobody's, so that a forward may go on computing it: what it writes there
   * (within one page) is read by no sequence.
   */
  park(row: number): void {
    const { pages, maxPagesPerSequence, parking = false } = this.options;
    if (!parking) throw new Error("KV pages: expected a cache with a page for parked rows");
    this.release(row);
    this.blockTable.write(Int32Array.of(pages), row * maxPagesPerSequence);
  }

  /** Keeps row `row`'s pages alive, so that the row can go on, be released and come back to what it holds now. */
  hold(row: number): PageHold {
    const pages = [...this.#pages(row)];
    for (const page of pages) this.#references[page] = (this.#references[page] as number) + 1;
    return { pages };
  }

  /** Row `row` gives up its pages and shares those of `hold`. Tokens past the held length may be overwritten by whoever runs. */
  restore(row: number, hold: PageHold): void {
    this.release(row);
    for (const page of hold.pages) this.#references[page] = (this.#references[page] as number) + 1;
    this.#pages(row).push(...hold.pages);
    this.blockTable.write(Int32Array.from(hold.pages), row * this.options.maxPagesPerSequence);
  }

  /** Ends a hold. */
  drop(hold: PageHold): void {
    this.#unreference(hold.pages);
  }

  /** Row `to` (which must hold no page) takes over row `from`'s pages. */
  moveRow(from: number, to: number): void {
    if (from === to) return;
    const target = this.#pages(to);
    if (target.length > 0) {
      throw new Error(
        `KV pages: expected row ${to} to be empty before a move, got ${target.length} pages`,
      );
    }
    const owned = this.#pages(from);
    this.#pagesOf[to] = owned;
    this.#pagesOf[from] = target;
    this.blockTable.write(Int32Array.from(owned), to * this.options.maxPagesPerSequence);
  }

  dispose(): void {
    this.ref.data.dispose();
    this.blockTable.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #unreference(pages: readonly number[]): void {
    for (const page of pages) {
      const left = (this.#references[page] as number) - 1;
      this.#references[page] = left;
      if (left === 0) this.#free.push(page);
    }
  }

  #pages(row: number): number[] {
    const pages = this.#pagesOf[row];
    if (pages === undefined) {
      throw new RangeError(
        `KV pages: expected a row in 0 .. ${this.options.batch - 1}, got ${row}`,
      );
    }
    return pages;
  }
}

import type { Draft } from "@magicdec/speculation";
import type { Device, Graph, Tensor } from "@magicdec/tensor";

/** Selections whose times the host may not have read yet. */
const slots = 2;

/** Selection of what a draft reads, as a graph of its own between iterations, timed by the device. */
export class Selection implements Disposable {
  readonly #graphs = new Map<number, Graph>();
  /** Start and end of each selection that may be in flight. */
  readonly #stamps: Tensor;
  #launched = 0;

  constructor(
    private readonly device: Device,
    private readonly draft: Draft,
    private readonly useGraphs: boolean,
  ) {
    this.#stamps = device.alloc([2 * slots], "f64", { kind: "host" });
  }

  /** Generated tokens after which a row is due. */
  get every(): number {
    return this.draft.selectEvery;
  }

  /** Enqueues a selection for the first `b` rows; returns what `ms` takes. */
  launch(b: number): number {
    const slot = this.#launched++ % slots;
    this.device.stream.timestamp(this.#stamps, 2 * slot);
    this.#enqueue(b);
    this.device.stream.timestamp(this.#stamps, 2 * slot + 1);
    return slot;
  }

  /** Milliseconds of a selection that has run. */
  ms(slot: number): number {
    const stamps = this.#stamps.hostArray() as Float64Array;
    return ((stamps[2 * slot + 1] ?? 0) - (stamps[2 * slot] ?? 0)) / 1e6;
  }

  #enqueue(b: number): void {
    if (!this.useGraphs) return this.draft.select(b);
    let graph = this.#graphs.get(b);
    if (graph === undefined) {
      graph = this.device.stream.capture(() => this.draft.select(b));
      this.#graphs.set(b, graph);
    }
    graph.launch();
  }

  [Symbol.dispose](): void {
    for (const graph of this.#graphs.values()) graph.dispose();
    this.#stamps.dispose();
  }
}

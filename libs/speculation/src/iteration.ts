import { type Device, type Graph, publish, type Tensor } from "@magicdec/tensor";
import type { BatchState } from "./batch.ts";
import type { Draft } from "./draft.ts";
import type { Verifier } from "./verify.ts";

/** Iterations whose records the host has not read may be this many minus one. */
const ringSlots = 4;
const stampCount = 4;

/** What the host learns of one iteration. */
export interface IterationRecord {
  /** Tokens emitted by each row, in row order at launch. */
  readonly tokens: readonly (readonly number[])[];
  readonly msDraft: number;
  readonly msVerify: number;
  readonly msAccept: number;
}

/** Where an iteration leaves its results: one block of memory, so that one copy publishes it. */
export class RecordBuffers implements Disposable {
  readonly counts: Tensor;
  readonly emitted: Tensor;
  readonly stamps: Tensor;
  readonly record: Tensor;
  readonly #ring: Tensor;
  readonly #counter: Tensor;
  readonly #bytes: number;

  constructor(
    device: Device,
    readonly batch: number,
    readonly gamma: number,
  ) {
    const head = 8 * stampCount;
    const bytes = head + 4 * batch * (gamma + 2);
    this.#bytes = Math.ceil(bytes / 64) * 64;
    this.record = device.alloc([this.#bytes], "u8");
    this.stamps = this.record.view([stampCount], { dtype: "f64" });
    this.counts = this.record.view([batch], { dtype: "i32", byteOffset: head });
    const emittedAt = head + 4 * batch;
    this.emitted = this.record.view([batch, gamma + 1], { dtype: "i32", byteOffset: emittedAt });
    this.#ring = device.alloc([ringSlots, this.#bytes], "u8", { kind: "host" });
    this.#counter = device.alloc([1], "u32");
  }

  /** Enqueues: records are counted from 0 again. */
  begin(): void {
    this.#counter.fill(0);
  }

  publish(): void {
    publish({ record: this.record, ring: this.#ring, counter: this.#counter });
  }

  /** The record of iteration `index` (counted from 0); it must have run, and at most `ringSlots - 1` later ones been launched. */
  read(index: number, b: number): IterationRecord {
    const native = this.#ring.hostArray() as Uint8Array;
    const at = native.byteOffset + (index % ringSlots) * this.#bytes;
    const stamps = new Float64Array(native.buffer, at, stampCount);
    const counts = new Int32Array(native.buffer, at + 8 * stampCount, b);
    const width = this.gamma + 1;
    const emittedAt = at + 8 * stampCount + 4 * this.batch;
    const emitted = new Int32Array(native.buffer, emittedAt, b * width);
    const tokens: number[][] = [];
    for (let row = 0; row < b; row++) {
      tokens.push(Array.from(emitted.subarray(row * width, row * width + (counts[row] ?? 0))));
    }
    const [start = 0, drafted = 0, verified = 0, accepted = 0] = stamps;
    return {
      tokens,
      msDraft: (drafted - start) / 1e6,
      msVerify: (verified - drafted) / 1e6,
      msAccept: (accepted - verified) / 1e6,
    };
  }

  [Symbol.dispose](): void {
    for (const tensor of [this.record, this.#ring, this.#counter]) tensor.dispose();
  }
}

export interface IterationOptions {
  readonly device: Device;
  readonly state: BatchState;
  readonly draft: Draft | undefined;
  readonly verifier: Verifier;
  readonly buffers: RecordBuffers;
  /** Capture batch sizes once and replay them; otherwise every iteration is enqueued op by op. */
  readonly graphs: GraphSizes;
}

/**
 * Which batch sizes get a graph. `exact`: each that occurs. `rounded`: the one a run begins with, and below it the sizes 1, 2, 3, 4, 6, 8, 12, 16, ...;
 * a batch between two takes the next larger, whose last rows are parked. For devices where capturing takes longer than computing a few parked rows.
 */
export type GraphSizes = "exact" | "rounded" | "none";

/**
 * A whole iteration, gamma draft steps, verify, accept and publish, as one launch. Graphs are keyed by the batch size: everything else that changes
 * lives in device memory, so they serve one run after another.
 */
export class Iteration implements Disposable {
  readonly #graphs = new Map<number, Graph>();
  #largest = 0;

  constructor(private readonly options: IterationOptions) {}

  /** A new run of `b` rows; captures their graph before it is needed. */
  begin(b: number): void {
    this.#largest = b;
    if (this.options.graphs !== "none") this.#graph(b);
  }

  launch(b: number): void {
    if (this.options.graphs === "none") return this.enqueue(b);
    this.#graph(this.#size(b)).launch();
  }

  /** The batch size whose graph serves `b` rows. */
  #size(b: number): number {
    if (this.options.graphs === "exact" || this.#graphs.has(b)) return b;
    return Math.min(this.#largest, roundedSize(b));
  }

  #graph(b: number): Graph {
    let graph = this.#graphs.get(b);
    if (graph === undefined) {
      graph = this.options.device.stream.capture(() => this.enqueue(b));
      this.#graphs.set(b, graph);
    }
    return graph;
  }

  /** Enqueues an iteration op by op. */
  enqueue(b: number): void {
    const { device, draft, verifier, buffers } = this.options;
    const { stream } = device;
    stream.timestamp(buffers.stamps, 0);
    draft?.propose(b);
    stream.timestamp(buffers.stamps, 1);
    verifier.forward(b);
    stream.timestamp(buffers.stamps, 2);
    verifier.decide(b, draft?.probabilities);
    stream.timestamp(buffers.stamps, 3);
    buffers.publish();
  }

  [Symbol.dispose](): void {
    for (const graph of this.#graphs.values()) graph.dispose();
    this.#graphs.clear();
  }
}

/** The smallest of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is not below `b`: at most half as much again. */
function roundedSize(b: number): number {
  const power = 2 ** Math.ceil(Math.log2(b));
  const between = (power * 3) / 4;
  return Number.isInteger(between) && between >= b ? between : power;
}

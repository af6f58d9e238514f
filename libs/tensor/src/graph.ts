// A recorded sequence of ops that is enqueued again by one call. It holds the addresses of its
// tensors: they must outlive its last launch.

import type { Device } from "./device.ts";
import { NativeHandle } from "./handle.ts";

export class Graph implements Disposable {
  readonly #handle: NativeHandle;

  /** @internal Graphs come from Stream.capture. */
  constructor(device: Device, id: number) {
    const run = device.symbols.md_graph_destroy;
    this.#handle = new NativeHandle(device, id, "graph", { op: "md_graph_destroy", run });
    this.#handle.watch(this);
  }

  /** Enqueues everything that was recorded. */
  launch(): void {
    this.#handle.requireOpen("launch");
    const { device, id } = this.#handle;
    device.check("md_graph_launch", device.symbols.md_graph_launch(id));
  }

  /** Frees the graph, after the launches enqueued before. */
  dispose(): void {
    this.#handle.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

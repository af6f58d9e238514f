// A place in the stream that the host can wait for, without waiting for what was enqueued after it.

import type { Device } from "./device.ts";
import { NativeHandle } from "./handle.ts";

export class DeviceEvent implements Disposable {
  readonly #handle: NativeHandle;

  /** @internal Events come from Stream.event. */
  constructor(device: Device, id: number) {
    const run = device.symbols.md_event_destroy;
    this.#handle = new NativeHandle(device, id, "event", { op: "md_event_destroy", run });
    this.#handle.watch(this);
  }

  /**
   * Enqueues a mark. Inside a capture it becomes part of the graph, and each launch marks the event
   * anew.
   */
  record(): void {
    this.#handle.requireOpen("record");
    const { device, id } = this.#handle;
    device.check("md_event_record", device.symbols.md_event_record(id));
  }

  /**
   * Waits until the last mark enqueued so far has been reached; returns at once where there is
   * none.
   */
  wait(): void {
    this.#handle.requireOpen("wait");
    const { device, id } = this.#handle;
    device.check("md_event_wait", device.symbols.md_event_wait(id));
  }

  /** Frees the event. A graph that marks it has to go first. */
  dispose(): void {
    this.#handle.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

// The device's one in-order queue. Ops only enqueue; sync, reads and DeviceEvent.wait are what
// waits.

import { StatusError } from "@magicdec/abi";
import type { Device } from "./device.ts";
import { DeviceEvent } from "./event.ts";
import { Graph } from "./graph.ts";
import type { Tensor } from "./tensor.ts";

export class Stream {
  readonly device: Device;

  /** @internal Device.stream is the one. */
  constructor(device: Device) {
    this.device = device;
  }

  /** Waits for everything enqueued. */
  sync(): void {
    const { device } = this;
    device.check("md_stream_sync", device.symbols.md_stream_sync(device.context));
  }

  /**
   * Records the ops that `record` enqueues, without running them. Inside it nothing may allocate,
   * read or wait: such a call throws a StatusError of status capture_violation, and the recording
   * is dropped.
   */
  capture(record: () => void): Graph {
    const { device } = this;
    device.check("md_graph_begin", device.symbols.md_graph_begin(device.context));
    try {
      record();
    } catch (error) {
      device.symbols.md_graph_end(device.context, null);
      throw error;
    }
    return new Graph(
      device,
      device.out("md_graph_end", (out) => device.symbols.md_graph_end(device.context, out)),
    );
  }

  /** A new event, not yet recorded. */
  event(): DeviceEvent {
    const { device } = this;
    const id = device.out("md_event_create", (out) =>
      device.symbols.md_event_create(device.context, out),
    );
    return new DeviceEvent(device, id);
  }

  /** Enqueues writing the device's clock, in nanoseconds, to element `index` of `out` (f64). */
  timestamp(out: Tensor, index: number): void {
    const { device } = this;
    if (out.dtype !== "f64" || !Number.isInteger(index) || index < 0 || index >= out.elements) {
      throw new StatusError(
        "invalid_argument",
        "timestamp",
        `timestamp: expected an element of an f64 tensor, got ${index} of ${out.toString()}`,
      );
    }
    device.check(
      "md_timestamp",
      device.symbols.md_timestamp(device.context, out.address + 8 * index),
    );
  }
}

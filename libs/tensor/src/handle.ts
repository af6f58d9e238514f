// What every native resource has in common: it is freed once, a use after that is an error with a
// name, and its device knows it is open.

import { StatusError } from "@magicdec/abi";
import type { Device } from "./device.ts";

const reportLeaks = (Bun.env.MAGICDEC_DEBUG ?? "").split(",").includes("leaks");

const leaks = new FinalizationRegistry<NativeHandle>((handle) => {
  if (handle.released) return;
  console.warn(`magicdec: ${handle.what} was collected without dispose(); ${handle.origin}`);
});

/** Frees a native handle and returns the library's status. */
export interface Free {
  readonly op: string;
  readonly run: (id: number) => number;
}

export class NativeHandle {
  readonly device: Device;
  readonly id: number;
  /** For people: "tensor f32 (3, 4)". */
  readonly what: string;
  released = false;
  /** Where it was made, under MAGICDEC_DEBUG=leaks. */
  readonly origin: string;
  readonly #free: Free;

  constructor(device: Device, id: number, what: string, free: Free) {
    this.device = device;
    this.id = id;
    this.what = what;
    this.#free = free;
    this.origin = reportLeaks ? `made by ${new Error().stack ?? ""}` : "";
    device.handles.add(this);
  }

  /**
   * Reports (never frees) `owner` when it is collected while this is open, under
   * MAGICDEC_DEBUG=leaks.
   */
  watch(owner: object): void {
    if (reportLeaks) leaks.register(owner, this);
  }

  /** Throws where the resource has been freed. */
  requireOpen(op: string): void {
    if (this.released) this.#refuse(op);
  }

  /**
   * Frees the resource; later calls do nothing. Where the library refuses, the resource stays open.
   */
  release(): void {
    if (this.released) return;
    this.device.check(this.#free.op, this.#free.run(this.id));
    this.released = true;
    this.device.handles.delete(this);
  }

  #refuse(op: string): never {
    throw new StatusError(
      "invalid_handle",
      op,
      `${op}: expected an open ${this.what}, got one that was disposed; use it before`,
    );
  }
}

// A safetensors file that the library maps, so that weights go from the page cache to the device
// without passing through JavaScript.

import type { Device } from "./device.ts";
import { NativeHandle } from "./handle.ts";

export class MappedFile implements Disposable {
  readonly path: string;
  readonly #handle: NativeHandle;

  /** @internal Files come from Device.openFile. */
  constructor(device: Device, id: number, path: string) {
    this.path = path;
    const run = (file: number): number => {
      device.stream.sync();
      return device.symbols.md_file_close(file);
    };
    this.#handle = new NativeHandle(device, id, `file ${path}`, { op: "md_file_close", run });
    this.#handle.watch(this);
  }

  /** The library's handle, for md_weight_pack. */
  get id(): number {
    this.#handle.requireOpen("file");
    return this.#handle.id;
  }

  /** Waits for the ops that read from it, and unmaps the file. */
  dispose(): void {
    this.#handle.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** FNV-1a, 64 bits, as two 32-bit halves. */
export function fnv1a64(bytes: Uint8Array): { low: number; high: number } {
  // The prime is 2^40 + 0x1b3: the product's high half is high * 0x1b3 + low * 2^8 + the carry out
  // of low * 0x1b3.
  let low = 0x84222325;
  let high = 0xcbf29ce4;
  for (const byte of bytes) {
    low = (low ^ byte) >>> 0;
    const product = low * 0x1b3;
    high = (Math.imul(high, 0x1b3) + (low << 8) + Math.floor(product / 2 ** 32)) >>> 0;
    low = product >>> 0;
  }
  return { low, high };
}

// Large random data on the device, made once and viewed by every case.

import { NoisePool } from "@magicdec/model";
import type { Device, Tensor } from "@magicdec/tensor";

/** The memory as a matrix of bytes with rows of this size: a shape's sizes are 32 bits wide. */
const rowBytes = 1 << 20;

/**
 * Layers of bf16 normals, allocated when first asked for and freed with the device: `most` of them, or as many as fit in 60 %
 * of the memory that is free.
 */
export class LayerPool {
  #memory: Tensor | undefined;
  #layers = 0;

  constructor(
    readonly layerBytes: number,
    private readonly most: number,
    private readonly scale: number,
  ) {}

  get(device: Device): { readonly memory: Tensor; readonly layers: number } {
    if (this.#memory === undefined) {
      const free = 0.6 * device.info.availableMemoryBytes;
      this.#layers = Math.max(1, Math.min(this.most, Math.floor(free / this.layerBytes)));
      const rows = Math.ceil((this.#layers * this.layerBytes) / rowBytes);
      this.#memory = device.alloc([rows, rowBytes], "u8");
      using noise = new NoisePool(device, 1, this.scale);
      noise.fill(this.#memory);
    }
    return { memory: this.#memory, layers: this.#layers };
  }
}

// Scratch memory for descriptors and out-parameters. The library copies a descriptor during the
// call, so a slot is free again as soon as the call has returned; a ring is there so that the slots
// of one call never overlap, and is small so that it stays in cache.
//
// The memory is an ArrayBuffer of its own: the engine may move the storage of a small typed array
// that has no buffer yet, never that of an explicit ArrayBuffer, so its address can be kept.

import { type Pointer, ptr, toArrayBuffer } from "bun:ffi";
import { maxDescBytes, type NativeWords } from "./abi.gen.ts";

const slotAlignment = 64;

/** Bytes of a ring: room for many descriptors, and a small part of a level-1 cache. */
const ringBytes = 8192;

/** A live view of native memory, which the caller keeps alive for as long as the buffer is used. */
export function nativeBuffer(address: number, bytes: number): ArrayBuffer {
  return toArrayBuffer(address as Pointer, 0, bytes);
}

export class DescriptorRing implements NativeWords {
  readonly u32: Uint32Array<ArrayBuffer>;
  readonly f32: Float32Array<ArrayBuffer>;
  readonly f64: Float64Array<ArrayBuffer>;
  /** Address of byte 0, 64-byte aligned. */
  readonly address: number;
  #next = 0;

  constructor() {
    const buffer = new ArrayBuffer(ringBytes + slotAlignment);
    const start: number = ptr(buffer);
    const offset = (slotAlignment - (start % slotAlignment)) % slotAlignment;
    this.address = start + offset;
    this.u32 = new Uint32Array(buffer, offset, ringBytes / 4);
    this.f32 = new Float32Array(buffer, offset, ringBytes / 4);
    this.f64 = new Float64Array(buffer, offset, ringBytes / 8);
  }

  /**
   * The byte offset of a 64-byte aligned slot for one descriptor or out-parameter; it holds what an
   * earlier call left there.
   */
  take(): number {
    let at = this.#next;
    if (at + maxDescBytes > ringBytes) at = 0;
    this.#next = (at + maxDescBytes + slotAlignment - 1) & -slotAlignment;
    return at;
  }
}

// A dense row-major array in device memory: an owner of its memory, or a borrowed view of another
// tensor.

import { nativeBuffer, StatusError } from "@magicdec/abi";
import type { Device } from "./device.ts";
import { type DType, elementBytes, hostArrays, type TypedArray } from "./dtype.ts";
import type { NativeHandle } from "./handle.ts";

export type MemoryKind = "device" | "host";

const maxRank = 4;

/** The memory that a tensor and its views share. */
export interface Storage {
  readonly handle: NativeHandle;
  readonly kind: MemoryKind;
  readonly address: number;
  readonly bytes: number;
  /**
   * What hostArray() looks through; detached when the memory is freed, so that a late reader sees
   * nothing instead of other data.
   */
  hostBuffer: ArrayBuffer | undefined;
}

/** "bf16 (3, 64)" */
export function describe(dtype: DType, shape: readonly number[]): string {
  return `${dtype} (${shape.join(", ")})`;
}

/** The number of elements of a shape; throws where it is none. */
export function countElements(op: string, shape: readonly number[]): number {
  const fits = shape.length >= 1 && shape.length <= maxRank;
  if (fits && shape.every((size) => Number.isInteger(size) && size >= 0 && size < 2 ** 32)) {
    return shape.reduce((product, size) => product * size, 1);
  }
  throw new StatusError(
    "invalid_argument",
    op,
    `${op}: expected 1 to ${maxRank} whole numbers below 2^32 as shape, got (${shape.join(", ")})`,
  );
}

export class Tensor implements Disposable {
  readonly device: Device;
  readonly shape: readonly number[];
  readonly dtype: DType;
  readonly elements: number;
  readonly bytes: number;
  readonly #address: number;
  readonly #handle: NativeHandle;
  readonly #storage: Storage;
  readonly #owned: boolean;

  /** @internal Tensors come from Device.alloc, Device.from and view(). */
  constructor(
    storage: Storage,
    address: number,
    shape: readonly number[],
    dtype: DType,
    owned: boolean,
  ) {
    this.device = storage.handle.device;
    this.shape = [...shape];
    this.dtype = dtype;
    this.elements = countElements("tensor", shape);
    this.bytes = this.elements * elementBytes(dtype);
    this.#address = address;
    this.#handle = storage.handle;
    this.#storage = storage;
    this.#owned = owned;
    if (owned) storage.handle.watch(this);
  }

  /**
   * The device address. Every op asks for it, so this is where the use of a freed tensor is found.
   */
  get address(): number {
    if (this.#handle.released) this.#handle.requireOpen("tensor");
    return this.#address;
  }

  /** The kind of memory this lives in. */
  get kind(): MemoryKind {
    return this.#storage.kind;
  }

  /**
   * A borrowed tensor over the same memory, `byteOffset` bytes into this one. It must lie inside
   * this tensor, and may be smaller. It dies with the owner; disposing of it does nothing.
   */
  view(
    shape: readonly number[],
    options: { byteOffset?: number | undefined; dtype?: DType | undefined } = {},
  ): Tensor {
    const { byteOffset = 0, dtype = this.dtype } = options;
    const bytes = countElements("view", shape) * elementBytes(dtype);
    const aligned = Number.isInteger(byteOffset) && byteOffset % elementBytes(dtype) === 0;
    if (!aligned || byteOffset < 0 || byteOffset + bytes > this.bytes) {
      this.#refuse(
        "view",
        `${describe(dtype, shape)} at a whole element inside ${this.bytes} bytes`,
        `${bytes} bytes at byte ${byteOffset}`,
      );
    }
    return new Tensor(this.#storage, this.address + byteOffset, shape, dtype, false);
  }

  /** A borrowed tensor of the leading rows [start, end). */
  rows(start: number, end: number): Tensor {
    const [rows = 0, ...rest] = this.shape;
    if (!(
      Number.isInteger(start) &&
      Number.isInteger(end) &&
      0 <= start &&
      start <= end &&
      end <= rows
    )) {
      this.#refuse("rows", `0 <= start <= end <= ${rows}`, `[${start}, ${end})`);
    }
    const rowBytes = rows === 0 ? 0 : this.bytes / rows;
    return this.view([end - start, ...rest], { byteOffset: start * rowBytes });
  }

  /**
   * Enqueues a copy of `data` to the elements from `elementOffset` on. The data is taken at the
   * call and may change afterwards.
   */
  write(data: TypedArray, elementOffset = 0): void {
    this.#requireArray("write", data);
    const end = elementOffset + data.length;
    if (!Number.isInteger(elementOffset) || elementOffset < 0 || end > this.elements) {
      this.#refuse("write", `elements inside [0, ${this.elements})`, `[${elementOffset}, ${end})`);
    }
    if (data.length === 0) return;
    const { device } = this;
    const to = this.address + elementOffset * data.BYTES_PER_ELEMENT;
    device.check(
      "md_memory_write",
      device.symbols.md_memory_write(device.context, to, data, data.byteLength),
    );
  }

  /** Enqueues setting every byte to `byte`. */
  fill(byte: number): void {
    if (!Number.isInteger(byte) || byte < 0 || byte > 255)
      this.#refuse("fill", "a byte", `${byte}`);
    if (this.bytes === 0) return;
    const { device, address, bytes } = this;
    device.check(
      "md_memory_fill",
      device.symbols.md_memory_fill(device.context, address, byte, bytes),
    );
  }

  /**
   * Waits for what was enqueued, and returns a copy: bf16 as its bits in a Uint16Array, other types
   * as themselves.
   */
  read(): TypedArray {
    const { device, address, bytes } = this;
    const out = new hostArrays[this.dtype](this.elements);
    if (bytes === 0) return out;
    device.check(
      "md_memory_read",
      device.symbols.md_memory_read(device.context, out, address, bytes),
    );
    return out;
  }

  /**
   * The memory itself, for tensors of kind "host". It shows what the device has written so far:
   * wait for an event, or sync, before reading. The array becomes empty when the memory is freed.
   */
  hostArray(): TypedArray {
    const storage = this.#storage;
    const { address } = this;
    if (storage.kind !== "host") {
      this.#refuse(
        "hostArray",
        'memory of kind "host"',
        'kind "device"; use read(), or alloc with { kind: "host" }',
      );
    }
    storage.hostBuffer ??= nativeBuffer(storage.address, storage.bytes);
    return new hostArrays[this.dtype](storage.hostBuffer, address - storage.address, this.elements);
  }

  toString(): string {
    return `tensor ${describe(this.dtype, this.shape)}`;
  }

  /**
   * Frees the memory of an owner, after what was enqueued before. Its views are dead afterwards,
   * and a use of them is an error.
   */
  dispose(): void {
    if (this.#owned) this.#handle.release();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  #requireArray(op: string, data: TypedArray): void {
    const expected = hostArrays[this.dtype];
    if (data.constructor === expected) return;
    this.#refuse(op, `a ${expected.name}`, `a ${data.constructor.name}`);
  }

  #refuse(op: string, expected: string, got: string): never {
    const message = `${op}: expected ${expected} for ${this.toString()}, got ${got}`;
    throw new StatusError("invalid_argument", op, message);
  }
}

// A device: where tensors live and ops run. It owns one library context with one in-order stream.

import {
  Backend,
  CpuLevel,
  type DescriptorRing,
  DType as dtypeCodes,
  type Library,
  loadLibrary,
  MemoryKind as memoryKinds,
  type NativeLibrary,
  ProbeKind,
  readAllocation,
  readDeviceInfo,
  StatusError,
  writeContextDesc,
} from "@magicdec/abi";
import { toBf16 } from "./bf16.ts";
import { type DType, elementBytes, type TypedArray } from "./dtype.ts";
import { fnv1a64, MappedFile } from "./file.ts";
import { NativeHandle } from "./handle.ts";
import { Stream } from "./stream.ts";
import { countElements, describe, type MemoryKind, type Storage, Tensor } from "./tensor.ts";

export type BackendName = Backend;
export type CpuLevelName = CpuLevel;
export type ProbeName = ProbeKind;

/** A device as a user names it; "cuda" is the first GPU. */
export type DeviceName = "auto" | BackendName | `cuda:${number}`;

export interface DeviceOptions {
  /**
   * "cpu" (the default) and "cuda" compute; "null" records each call and computes nothing; "auto"
   * is "cuda" where a GPU opens, otherwise "cpu".
   */
  backend?: BackendName | "auto" | undefined;
  /** Which GPU, from 0. */
  device?: number | undefined;
  /** CPU: threads that compute; all cores that this process may use by default. */
  threads?: number | undefined;
  /** CPU: instruction level; the best of this machine by default, or MAGICDEC_CPU_LEVEL. */
  level?: CpuLevelName | undefined;
}

/** What does not apply to a device is 0, or empty. */
export interface DeviceInfo {
  readonly totalMemoryBytes: number;
  readonly availableMemoryBytes: number;
  /** CPU: threads that compute. */
  readonly threads: number;
  /** CPU: instruction level. */
  readonly level: CpuLevelName;
  /** CPU: f32 lanes of one vector. */
  readonly lanes: number;
  /** CPU: whether a bf16 dot-product instruction is used. */
  readonly bf16Dot: boolean;
  /** GPU: "NVIDIA H200". */
  readonly name: string;
  /** GPU: 90 stands for 9.0. */
  readonly computeCapability: number;
  /** GPU: streaming multiprocessors. */
  readonly multiprocessors: number;
  /** GPU: bytes of its second-level cache. */
  readonly l2Bytes: number;
  /** GPU: the newest CUDA version that the driver runs; 13000 stands for 13.0. */
  readonly driverVersion: number;
}

export class Device implements Disposable {
  readonly backend: BackendName;
  /** Which GPU, from 0; 0 elsewhere. */
  readonly index: number;
  /** Where "auto" took the CPU: why it took no GPU. */
  readonly withoutGpu: string | undefined;
  readonly stream: Stream;
  /** @internal */ readonly library: Library;
  /** @internal Replaced while ops are timed (profileOps). */ symbols: NativeLibrary;
  /** @internal */ readonly ring: DescriptorRing;
  /** @internal */ readonly context: number;
  /** @internal What is open on this device, in the order it was made. */
  readonly handles = new Set<NativeHandle>();
  #closed = false;

  private constructor(library: Library, chosen: Chosen, context: number) {
    this.library = library;
    this.symbols = library.symbols;
    this.ring = library.ring;
    this.backend = chosen.backend;
    this.index = chosen.device;
    this.withoutGpu = chosen.withoutGpu;
    this.context = context;
    this.stream = new Stream(this);
  }

  /**
   * Opens a device; throws LibraryError where there is no usable library, StatusError where the
   * machine has not what is asked for.
   */
  static open(options: DeviceOptions = {}): Device {
    const { backend = "cpu", threads = 0, device = 0 } = options;
    if (backend !== "auto") requireKey("backend", Backend, backend);
    requireKey("level", CpuLevel, options.level ?? "auto");
    requireWhole("threads from 1 to 1024, or 0 for all cores", threads, 1024);
    requireWhole("a device number from 0 to 1023", device, 1023);
    if (backend !== "auto") return Device.#open(options, { backend, device });
    try {
      return Device.#open(options, { backend: "cuda", device });
    } catch (error) {
      if (!isNoGpu(error)) throw error;
      return Device.#open(options, { backend: "cpu", device: 0, withoutGpu: error.message });
    }
  }

  static #open({ threads = 0, level = "auto" }: DeviceOptions, chosen: Chosen): Device {
    const library = loadLibrary();
    const { ring, symbols } = library;
    const desc = ring.take();
    const out = ring.take();
    const { backend, device } = chosen;
    writeContextDesc(ring, desc, { backend, device, threads, level });
    const status = symbols.md_context_create(ring.address + desc, ring.address + out);
    library.check("md_context_create", status);
    return new Device(library, chosen, ring.u32[out >>> 2] as number);
  }

  /** What a report calls it: "cpu v4", "cuda:0 NVIDIA H200". */
  get label(): string {
    if (this.backend === "cpu") return `cpu ${this.info.level}`;
    return this.backend === "cuda" ? `cuda:${this.index} ${this.info.name}` : this.backend;
  }

  /** What the device is, and its memory as of now. */
  get info(): DeviceInfo {
    const { ring } = this;
    const out = ring.take();
    this.check("md_device_info", this.symbols.md_device_info(this.context, ring.address + out));
    const { totalMemory, availableMemory, bf16Dot, ...rest } = readDeviceInfo(ring, out);
    return {
      totalMemoryBytes: totalMemory,
      availableMemoryBytes: availableMemory,
      bf16Dot: bf16Dot === 1,
      ...rest,
    };
  }

  /**
   * A zeroed tensor that owns its memory. Kind "host" can be read by the host while the device
   * writes it.
   */
  alloc(
    shape: readonly number[],
    dtype: DType,
    options: { kind?: MemoryKind | undefined } = {},
  ): Tensor {
    const { kind = "device" } = options;
    requireKey("dtype", dtypeCodes, dtype);
    requireKey("kind", memoryKinds, kind);
    const bytes = countElements("alloc", shape) * elementBytes(dtype);
    if (bytes === 0) throw refusal("alloc", "at least one element", describe(dtype, shape));
    const { ring } = this;
    const out = ring.take();
    const status = this.symbols.md_memory_alloc(
      this.context,
      memoryKinds[kind],
      bytes,
      ring.address + out,
    );
    this.check("md_memory_alloc", status);
    const { address, handle: id } = readAllocation(ring, out);
    return new Tensor(
      this.#storage(id, address, bytes, kind, shape, dtype),
      address,
      shape,
      dtype,
      true,
    );
  }

  /**
   * A tensor with these elements. A Float32Array given as bf16 is rounded to nearest even; bf16
   * bits come as a Uint16Array.
   */
  from(data: TypedArray, shape: readonly number[], dtype: DType): Tensor {
    const elements = countElements("from", shape);
    if (data.length !== elements) {
      throw refusal("from", `${elements} elements for ${describe(dtype, shape)}`, `${data.length}`);
    }
    const tensor = this.alloc(shape, dtype);
    try {
      tensor.write(dtype === "bf16" && data instanceof Float32Array ? toBf16(data) : data);
    } catch (error) {
      tensor.dispose();
      throw error;
    }
    return tensor;
  }

  /**
   * Measures a limit of the device: GB/s (read_bandwidth, over `megabytes` of memory) or GFLOP/s
   * (dot_peak, fma_peak). Waits.
   */
  probe(kind: ProbeName, megabytes = probedMegabytes(this.backend)): number {
    requireKey("kind", ProbeKind, kind);
    const { ring } = this;
    const out = ring.take();
    const to = ring.address + out;
    const status = this.symbols.md_probe(this.context, ProbeKind[kind], megabytes, to);
    this.check("md_probe", status);
    return ring.f64[out >>> 3] as number;
  }

  /**
   * Maps a safetensors file. `header` is its JSON header of `headerBytes` bytes as the caller
   * parsed it; the library refuses a file whose header is another one.
   */
  openFile(path: string, headerBytes: number, header: Uint8Array): MappedFile {
    if (header.length !== headerBytes) {
      throw refusal("openFile", `a header of ${headerBytes} bytes`, `${header.length} bytes`);
    }
    const { low, high } = fnv1a64(header);
    const id = this.out("md_file_open", (out) =>
      this.symbols.md_file_open(path, headerBytes, low, high, out),
    );
    return new MappedFile(this, id, path);
  }

  /** Null backend: the calls since the last trace, a line each. */
  trace(): string[] {
    const { symbols, context } = this;
    const needed = this.out("md_trace_read", (out) => symbols.md_trace_read(context, null, 0, out));
    if (needed === 0) return [];
    const text = new Uint8Array(needed);
    this.out("md_trace_read", (out) => symbols.md_trace_read(context, text, needed, out));
    return new TextDecoder()
      .decode(text)
      .split("\n")
      .filter((line) => line !== "");
  }

  /**
   * Waits for the stream and closes the device. What is still open on it (tensors, graphs, events,
   * files) is freed first, newest first.
   */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    const failures: unknown[] = [];
    for (const handle of [...this.handles].toReversed()) {
      try {
        handle.release();
      } catch (error) {
        // A lost GPU refuses to free what is gone with it; the context has to go all the same.
        failures.push(error);
      }
    }
    const status = this.symbols.md_context_destroy(this.context);
    for (const handle of this.handles) handle.released = true;
    this.handles.clear();
    this.library.check("md_context_destroy", status);
    if (failures.length > 0) throw failures[0];
  }

  [Symbol.dispose](): void {
    this.close();
  }

  /** @internal Throws what the library says where `status` is not ok. */
  check(op: string, status: number): void {
    if (status !== 0) this.library.check(op, status);
  }

  /** @internal The u32 that `call` writes to the address it is given. */
  out(op: string, call: (out: number) => number): number {
    const { ring } = this;
    const out = ring.take();
    this.check(op, call(ring.address + out));
    return ring.u32[out >>> 2] as number;
  }

  #storage(
    id: number,
    address: number,
    bytes: number,
    kind: MemoryKind,
    shape: readonly number[],
    dtype: DType,
  ): Storage {
    const free = {
      op: "md_memory_free",
      run: (memory: number): number => {
        const status = this.symbols.md_memory_free(memory);
        if (status === 0) storage.hostBuffer?.transfer(0);
        return status;
      },
    };
    const handle = new NativeHandle(this, id, `tensor ${describe(dtype, shape)}`, free);
    const storage: Storage = { handle, kind, address, bytes, hostBuffer: undefined };
    return storage;
  }
}

/** The device that was opened. */
interface Chosen {
  readonly backend: BackendName;
  readonly device: number;
  readonly withoutGpu?: string;
}

/** "cuda:1" as `Device.open` takes it. */
export function deviceOptions(name: DeviceName): Pick<DeviceOptions, "backend" | "device"> {
  const match = /^(auto|cpu|null|cuda)(?::(\d{1,3}))?$/.exec(name);
  if (match === null || (match[2] !== undefined && match[1] !== "cuda")) {
    throw refusal("open", "a device of auto, cpu, cuda, cuda:NUMBER or null", `"${name}"`);
  }
  return { backend: match[1] as BackendName | "auto", device: Number(match[2] ?? 0) };
}

/** Whether opening a GPU failed because there is none that can be used. */
function isNoGpu(error: unknown): error is StatusError {
  return error instanceof StatusError && ["unavailable", "unsupported"].includes(error.status);
}

/** Enough memory to read that no cache holds a share of it that counts. */
function probedMegabytes(backend: BackendName): number {
  return backend === "cuda" ? 1024 : 256;
}

function requireWhole(expected: string, value: number, most: number): void {
  if (Number.isInteger(value) && value >= 0 && value <= most) return;
  throw refusal("open", expected, `${value}`);
}

function refusal(op: string, expected: string, got: string): StatusError {
  return new StatusError("invalid_argument", op, `${op}: expected ${expected}, got ${got}`);
}

function requireKey(what: string, values: Readonly<Record<string, number>>, name: string): void {
  if (Object.hasOwn(values, name)) return;
  const names = Object.keys(values).join(", ");
  throw refusal("open", `${what} to be one of ${names}`, `"${name}"`);
}

/** How many library handles this process has open, over all devices and files. */
export function liveHandles(): number {
  const library = loadLibrary();
  const { ring } = library;
  const out = ring.take();
  library.check("md_live_handles", library.symbols.md_live_handles(ring.address + out));
  return ring.u32[out >>> 2] as number;
}

import {
  allocWeight,
  type Device,
  type MappedFile,
  type PackedWeight,
  type Tensor,
  toBf16,
  weightPack,
} from "@magicdec/tensor";
import type { Checkpoint, CheckpointTensor } from "@magicdec/weights";
import type { FamilySpec, TensorSpec } from "./families/llama.ts";
import type { WeightSource } from "./weights.ts";

/** Bytes of a table that cross this process at a time. */
const uploadChunkBytes = 16 << 20;

/**
 * Moves a checkpoint's tensors to the device, and counts the bytes done. Matrices go from the mapped file straight into the backend's packed order;
 * vectors and the embedding table pass through this process in pieces.
 */
export class WeightLoader implements WeightSource {
  readonly #files = new Map<string, MappedFile>();
  #done = 0;
  #total = 0;

  constructor(
    private readonly device: Device,
    private readonly checkpoint: Checkpoint,
    private readonly onProgress: (doneBytes: number, totalBytes: number) => void,
  ) {}

  /** Checks that every tensor is there with its shape and a supported dtype, before anything is allocated. */
  check(family: FamilySpec, layers: number): void {
    const specs = [family.embedding, family.finalNorm];
    if (family.lmHead !== undefined) specs.push(family.lmHead);
    for (let i = 0; i < layers; i++) {
      for (const part of Object.values(family.layer(i)) as (
        TensorSpec | readonly TensorSpec[] | undefined
      )[]) {
        if (part !== undefined) specs.push(...("name" in part ? [part] : part));
      }
    }
    for (const spec of specs) this.#total += this.#find(spec).bytes;
  }

  matrix(parts: readonly TensorSpec[]): PackedWeight {
    const k = parts[0]?.shape[1] as number;
    const n = parts.reduce((sum, part) => sum + (part.shape[0] as number), 0);
    const weight = allocWeight(this.device, n, k);
    let rowOffset = 0;
    for (const part of parts) {
      const tensor = this.#find(part);
      const file = this.#map(tensor);
      const [rows] = part.shape as [number, number];
      const dtype = tensor.dtype === "F32" ? "f32" : "bf16";
      const offset = tensor.offset - tensor.file.dataStart;
      weightPack({ file, offset, shape: [rows, k], dtype, weight, rowOffset });
      rowOffset += rows;
      this.#count(tensor.bytes);
    }
    return weight;
  }

  packed(table: Tensor): PackedWeight {
    const [n, k] = table.shape as [number, number];
    const weight = allocWeight(this.device, n, k);
    weightPack({ source: table, weight, rowOffset: 0 });
    return weight;
  }

  async vector(parts: readonly TensorSpec[]): Promise<Tensor> {
    const size = parts.reduce((sum, part) => sum + (part.shape[0] as number), 0);
    const out = this.device.alloc([size], "bf16");
    await this.#fill(out, parts);
    return out;
  }

  async optionalVector(parts: readonly TensorSpec[]): Promise<Tensor | undefined> {
    return parts.length === 0 ? undefined : await this.vector(parts);
  }

  async table(spec: TensorSpec): Promise<Tensor> {
    const out = this.device.alloc(spec.shape, "bf16");
    await this.#fill(out, [spec]);
    return out;
  }

  /** Unmaps the files; enqueued packing has to be done first. */
  [Symbol.dispose](): void {
    this.device.stream.sync();
    for (const file of this.#files.values()) file.dispose();
    this.#files.clear();
  }

  async #fill(out: Tensor, parts: readonly TensorSpec[]): Promise<void> {
    let element = 0;
    for (const part of parts) {
      const tensor = this.#find(part);
      const wide = tensor.dtype === "F32";
      const file = Bun.file(tensor.file.path);
      for (let at = 0; at < tensor.bytes; at += uploadChunkBytes) {
        const end = Math.min(tensor.bytes, at + uploadChunkBytes);
        const bytes = await file.slice(tensor.offset + at, tensor.offset + end).arrayBuffer();
        const data = wide ? toBf16(new Float32Array(bytes)) : new Uint16Array(bytes);
        out.write(data, element);
        element += data.length;
        this.#count(end - at);
      }
    }
  }

  #find(spec: TensorSpec): CheckpointTensor {
    return this.checkpoint.requireTensor(spec.name, spec.shape);
  }

  #map(tensor: CheckpointTensor): MappedFile {
    const { path } = tensor.file;
    // The library counts the JSON alone, without the 8 bytes of its length.
    const header = tensor.file.header.subarray(8);
    const known = this.#files.get(path);
    if (known !== undefined) return known;
    const file = this.device.openFile(path, header.length, header);
    this.#files.set(path, file);
    return file;
  }

  #count(bytes: number): void {
    this.#done += bytes;
    this.onProgress(this.#done, this.#total);
  }
}

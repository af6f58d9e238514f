import {
  allocWeight,
  type Device,
  type PackedWeight,
  type Tensor,
  weightPack,
} from "@magicdec/tensor";
import type { TensorSpec } from "./families/llama.ts";
import { NoisePool } from "./noise.ts";
import type { WeightSource } from "./weights.ts";

/** Standard deviation of the matrices, as models are initialised. */
const scale = 0.02;

/** Seeded random weights made on the device: norms are 1, biases 0, everything else normal. */
export class RandomWeights implements WeightSource {
  readonly #pool: NoisePool;

  constructor(
    private readonly device: Device,
    seed: number,
    private readonly onTensor: (bytes: number) => void,
  ) {
    this.#pool = new NoisePool(device, seed, scale);
  }

  matrix(parts: readonly TensorSpec[]): PackedWeight {
    const k = parts[0]?.shape[1] as number;
    const n = parts.reduce((sum, part) => sum + (part.shape[0] as number), 0);
    const weight = allocWeight(this.device, n, k);
    const most = NoisePool.rowsOf(k);
    for (let row = 0; row < n; row += most) {
      const source = this.#pool.cut(Math.min(most, n - row), k);
      weightPack({ source, weight, rowOffset: row });
    }
    this.onTensor(2 * n * k);
    return weight;
  }

  packed(table: Tensor): PackedWeight {
    const [n, k] = table.shape as [number, number];
    const weight = allocWeight(this.device, n, k);
    weightPack({ source: table, weight, rowOffset: 0 });
    return weight;
  }

  vector(parts: readonly TensorSpec[]): Promise<Tensor> {
    const size = parts.reduce((sum, part) => sum + (part.shape[0] as number), 0);
    const isNorm = parts.every(({ name }) => name.endsWith("norm.weight"));
    const values = new Float32Array(size).fill(isNorm ? 1 : 0);
    return Promise.resolve(this.device.from(values, [size], "bf16"));
  }

  optionalVector(parts: readonly TensorSpec[]): Promise<Tensor | undefined> {
    return parts.length === 0 ? Promise.resolve(undefined) : this.vector(parts);
  }

  table(spec: TensorSpec): Promise<Tensor> {
    const out = this.device.alloc(spec.shape, "bf16");
    this.#pool.fill(out);
    this.onTensor(out.bytes);
    return Promise.resolve(out);
  }

  [Symbol.dispose](): void {
    this.#pool[Symbol.dispose]();
  }
}

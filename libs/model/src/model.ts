import type { Communicator, Device } from "@magicdec/tensor";
import { Checkpoint } from "@magicdec/weights";
import { type ModelConfig, parseConfig } from "./config.ts";
import { forward, type ForwardBatch, type ForwardOptions } from "./transformer.ts";
import { disposeWeights, loadWeights, type ModelWeights, weightBytes } from "./weights.ts";
import type { Workspace } from "./workspace.ts";

/** A loaded checkpoint: config and weights on a device. Caches and activations belong to whoever runs it. */
export class Model implements Disposable {
  /** Bytes of weights that one forward reads. */
  readonly weightBytes: number;
  readonly allocatedBytes: number;
  /** Bytes of K and V that one token takes in all layers. */
  readonly kvBytesPerToken: number;

  private constructor(
    /** The checkpoint's folder. */
    readonly folder: string,
    readonly config: ModelConfig,
    private readonly weights: ModelWeights,
    private readonly comm: Communicator,
  ) {
    const bytes = weightBytes(weights);
    this.weightBytes = bytes.readPerStep;
    this.allocatedBytes = bytes.allocated;
    this.kvBytesPerToken = kvBytesPerToken(config);
  }

  /** Reads config.json and the safetensors of `folder` (Hugging Face layout) onto `device`. */
  static async load(
    device: Device,
    comm: Communicator,
    folder: string,
    onProgress?: (doneBytes: number, totalBytes: number) => void,
  ): Promise<Model> {
    const { checkpoint, config } = await readModel(folder);
    const weights = await loadWeights(device, checkpoint, config, onProgress);
    return new Model(folder, config, weights, comm);
  }

  /** Enqueues one forward; see {@link forward}. */
  forward(workspace: Workspace, batch: ForwardBatch, options?: ForwardOptions): void {
    forward(this.config, this.weights, workspace, this.comm, batch, options);
  }

  dispose(): void {
    disposeWeights(this.weights);
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}

/** Opens a model folder and parses its config, without touching a device. */
export async function readModel(folder: string) {
  const checkpoint = await Checkpoint.open(folder);
  const config = parseConfig(checkpoint.config, `${checkpoint.folder}/config.json`);
  return { checkpoint, config };
}

/** Bytes of bf16 K and V a token takes in all layers. */
export function kvBytesPerToken(config: ModelConfig): number {
  return 2 * 2 * config.layers * config.kvHeads * config.headDim;
}

/** Device bytes the weights will take, from the config alone (bf16). */
export function plannedWeightBytes(config: ModelConfig): number {
  const { hiddenSize, intermediateSize, heads, kvHeads, headDim, vocabSize, layers } = config;
  const attention = hiddenSize * headDim * (2 * heads + 2 * kvHeads);
  const layer = attention + 3 * hiddenSize * intermediateSize + 2 * hiddenSize;
  return 2 * (layers * layer + 2 * vocabSize * hiddenSize + hiddenSize);
}

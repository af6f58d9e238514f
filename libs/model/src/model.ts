import type { Communicator, Device } from "@magicdec/tensor";
import { Checkpoint } from "@magicdec/weights";
import { type ModelConfig, parseConfig } from "./config.ts";
import { llamaTensors } from "./families/llama.ts";
import { WeightLoader } from "./loader.ts";
import { RandomWeights } from "./random_weights.ts";
import { forward, type ForwardBatch, type ForwardOptions } from "./transformer.ts";
import {
  disposeWeights,
  loadWeights,
  type ModelWeights,
  plannedWeightBytes,
  weightBytes,
} from "./weights.ts";
import type { Workspace } from "./workspace.ts";

/** A checkpoint's folder, or shapes to fill with random weights. */
export type ModelSource = string | RandomModel;

/** A model that exists for timing only: its text means nothing. */
export interface RandomModel {
  readonly config: ModelConfig;
  readonly seed: number;
}

/** A model whose config is known and whose weights have not been touched. */
export interface OpenedModel {
  readonly config: ModelConfig;
  load(
    device: Device,
    comm: Communicator,
    onProgress?: (doneBytes: number, totalBytes: number) => void,
  ): Promise<Model>;
}

/** A loaded model: config and weights on a device. Caches and activations belong to whoever runs it. */
export class Model implements Disposable {
  /** Bytes of weights that one forward reads. */
  readonly weightBytes: number;
  readonly allocatedBytes: number;
  /** Bytes of K and V that one token takes in all layers. */
  readonly kvBytesPerToken: number;

  private constructor(
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
    const { load } = await openModel(folder);
    return await load(device, comm, onProgress);
  }

  /** @internal A model from weights of any source. */
  static of(config: ModelConfig, weights: ModelWeights, comm: Communicator): Model {
    return new Model(config, weights, comm);
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

/** Reads a model's config, without touching a device. */
export async function openModel(source: ModelSource): Promise<OpenedModel> {
  return typeof source === "string" ? await openCheckpoint(source) : openRandom(source);
}

async function openCheckpoint(folder: string): Promise<OpenedModel> {
  const checkpoint = await Checkpoint.open(folder);
  const config = parseConfig(checkpoint.config, `${checkpoint.folder}/config.json`);
  return {
    config,
    async load(device, comm, onProgress = () => {}) {
      using loader = new WeightLoader(device, checkpoint, onProgress);
      loader.check(llamaTensors(config), config.layers);
      return Model.of(config, await loadWeights(device, loader, config), comm);
    },
  };
}

function openRandom({ config, seed }: RandomModel): OpenedModel {
  return {
    config,
    async load(device, comm, onProgress = () => {}) {
      const total = plannedWeightBytes(device, config);
      let done = 0;
      using weights = new RandomWeights(device, seed, (bytes) => {
        done += bytes;
        onProgress(Math.min(done, total), total);
      });
      return Model.of(config, await loadWeights(device, weights, config), comm);
    },
  };
}

/** Bytes of bf16 K and V a token takes in all layers. */
export function kvBytesPerToken(config: ModelConfig): number {
  return 2 * 2 * config.layers * config.kvHeads * config.headDim;
}

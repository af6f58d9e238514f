import type { Device, PackedWeight, Tensor } from "@magicdec/tensor";
import type { Checkpoint } from "@magicdec/weights";
import type { ModelConfig } from "./config.ts";
import { llamaTensors } from "./families/llama.ts";
import { WeightLoader } from "./loader.ts";
import { inverseFrequencies } from "./rope.ts";

/** One layer, on the device. Fused weights stack their parts along the rows. */
export interface LayerWeights {
  readonly attentionNorm: Tensor;
  readonly qkv: PackedWeight;
  readonly qkvBias: Tensor | undefined;
  readonly output: PackedWeight;
  readonly outputBias: Tensor | undefined;
  readonly mlpNorm: Tensor;
  readonly gateUp: PackedWeight;
  readonly gateUpBias: Tensor | undefined;
  readonly down: PackedWeight;
  readonly downBias: Tensor | undefined;
}

export interface ModelWeights {
  /** (vocab, hidden) bf16 */
  readonly embedding: Tensor;
  readonly layers: readonly LayerWeights[];
  readonly finalNorm: Tensor;
  readonly lmHead: PackedWeight;
  /** (headDim / 2) f32 */
  readonly inverseFrequencies: Tensor;
}

/**
 * Loads a checkpoint onto the device. Matrices go from the mapped file straight into the backend's packed order; vectors and the
 * embedding table pass through this process in pieces.
 */
export async function loadWeights(
  device: Device,
  checkpoint: Checkpoint,
  config: ModelConfig,
  onProgress: (doneBytes: number, totalBytes: number) => void = () => {},
): Promise<ModelWeights> {
  const family = llamaTensors(config);
  using loader = new WeightLoader(device, checkpoint, onProgress);
  loader.check(family, config.layers);
  const embedding = await loader.table(family.embedding);
  const layers: LayerWeights[] = [];
  for (let i = 0; i < config.layers; i++) {
    const spec = family.layer(i);
    layers.push({
      attentionNorm: await loader.vector([spec.attentionNorm]),
      qkv: loader.matrix(spec.qkv),
      qkvBias: await loader.optionalVector(spec.qkvBias),
      output: loader.matrix([spec.output]),
      outputBias: await loader.optionalVector(spec.outputBias ? [spec.outputBias] : []),
      mlpNorm: await loader.vector([spec.mlpNorm]),
      gateUp: loader.matrix(spec.gateUp),
      gateUpBias: await loader.optionalVector(spec.gateUpBias),
      down: loader.matrix([spec.down]),
      downBias: await loader.optionalVector(spec.downBias ? [spec.downBias] : []),
    });
  }
  const finalNorm = await loader.vector([family.finalNorm]);
  const lmHead =
    family.lmHead === undefined ? loader.packed(embedding) : loader.matrix([family.lmHead]);
  const frequencies = inverseFrequencies(config);
  return {
    embedding,
    layers,
    finalNorm,
    lmHead,
    inverseFrequencies: device.from(frequencies, [frequencies.length], "f32"),
  };
}

/** Device bytes of the weights, and those that one forward reads (the embedding table is looked up, not read). */
export function weightBytes(weights: ModelWeights): { allocated: number; readPerStep: number } {
  let readPerStep = weights.lmHead.data.bytes + weights.finalNorm.bytes;
  for (const layer of weights.layers) {
    for (const part of Object.values(layer) as (Tensor | PackedWeight | undefined)[]) {
      if (part !== undefined) readPerStep += "data" in part ? part.data.bytes : part.bytes;
    }
  }
  return { allocated: readPerStep + weights.embedding.bytes, readPerStep };
}

export function disposeWeights(weights: ModelWeights): void {
  weights.embedding.dispose();
  weights.finalNorm.dispose();
  weights.lmHead.data.dispose();
  weights.inverseFrequencies.dispose();
  for (const layer of weights.layers) {
    for (const part of Object.values(layer) as (Tensor | PackedWeight | undefined)[]) {
      if (part !== undefined) ("data" in part ? part.data : part).dispose();
    }
  }
}

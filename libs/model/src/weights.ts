import { type Device, type PackedWeight, packedWeightBytes, type Tensor } from "@magicdec/tensor";
import type { ModelConfig } from "./config.ts";
import { llamaTensors, type TensorSpec } from "./families/llama.ts";
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

/** Where weights come from: a checkpoint, or a seed. */
export interface WeightSource extends Disposable {
  /** A row-major bf16 table (the embedding). */
  table(spec: TensorSpec): Promise<Tensor>;
  /** A bf16 vector from parts laid end to end. */
  vector(parts: readonly TensorSpec[]): Promise<Tensor>;
  /** The same; undefined where there is no part. */
  optionalVector(parts: readonly TensorSpec[]): Promise<Tensor | undefined>;
  /** One packed weight from row-major parts stacked along the rows. */
  matrix(parts: readonly TensorSpec[]): PackedWeight;
  /** A packed copy of a row-major device tensor (tied embeddings). */
  packed(table: Tensor): PackedWeight;
}

/** Puts a model's weights onto the device, layer by layer. */
export async function loadWeights(
  device: Device,
  loader: WeightSource,
  config: ModelConfig,
): Promise<ModelWeights> {
  const family = llamaTensors(config);
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

/** Device bytes that the weights will take, from the config alone. */
export function plannedWeightBytes(device: Device, config: ModelConfig): number {
  const family = llamaTensors(config);
  const layer = family.layer(0);
  const rows = (parts: readonly TensorSpec[]) =>
    parts.reduce((sum, part) => sum + (part.shape[0] as number), 0);
  const matrix = (parts: readonly TensorSpec[]) =>
    packedWeightBytes(device, rows(parts), parts[0]?.shape[1] as number);
  const vectors = [
    ...layer.qkvBias,
    ...layer.gateUpBias,
    ...[layer.outputBias, layer.downBias].filter((part) => part !== undefined),
    layer.attentionNorm,
    layer.mlpNorm,
  ];
  const matrices = [layer.qkv, [layer.output], layer.gateUp, [layer.down]];
  const perLayer = 2 * rows(vectors) + matrices.reduce((sum, parts) => sum + matrix(parts), 0);
  const table = 2 * config.vocabSize * config.hiddenSize;
  const head = matrix([family.lmHead ?? family.embedding]);
  return config.layers * perLayer + table + head + 2 * config.hiddenSize;
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

import type { ModelConfig } from "../config.ts";

/** A checkpoint tensor: its name and logical shape. */
export interface TensorSpec {
  readonly name: string;
  readonly shape: readonly number[];
}

/** Parts of a fused weight, stacked along the rows in this order. */
export interface LayerSpec {
  readonly attentionNorm: TensorSpec;
  readonly qkv: readonly TensorSpec[];
  readonly qkvBias: readonly TensorSpec[];
  readonly output: TensorSpec;
  readonly outputBias: TensorSpec | undefined;
  readonly mlpNorm: TensorSpec;
  readonly gateUp: readonly TensorSpec[];
  readonly gateUpBias: readonly TensorSpec[];
  readonly down: TensorSpec;
  readonly downBias: TensorSpec | undefined;
}

export interface FamilySpec {
  readonly embedding: TensorSpec;
  readonly finalNorm: TensorSpec;
  /** Absent where the embedding table serves as the output projection too. */
  readonly lmHead: TensorSpec | undefined;
  layer(index: number): LayerSpec;
}

/** Where Hugging Face Llama checkpoints keep what the transformer needs. */
export function llamaTensors(config: ModelConfig): FamilySpec {
  const { hiddenSize, intermediateSize, vocabSize, heads, kvHeads, headDim } = config;
  const q = heads * headDim;
  const kv = kvHeads * headDim;
  return {
    embedding: { name: "model.embed_tokens.weight", shape: [vocabSize, hiddenSize] },
    finalNorm: { name: "model.norm.weight", shape: [hiddenSize] },
    lmHead: config.tiedEmbeddings
      ? undefined
      : { name: "lm_head.weight", shape: [vocabSize, hiddenSize] },
    layer(index) {
      const at = (part: string, ...shape: number[]): TensorSpec => ({
        name: `model.layers.${index}.${part}`,
        shape,
      });
      const attentionBias = (part: string, size: number) =>
        config.attentionBias ? [at(`self_attn.${part}.bias`, size)] : [];
      const mlpBias = (part: string, size: number) =>
        config.mlpBias ? [at(`mlp.${part}.bias`, size)] : [];
      return {
        attentionNorm: at("input_layernorm.weight", hiddenSize),
        qkv: [
          at("self_attn.q_proj.weight", q, hiddenSize),
          at("self_attn.k_proj.weight", kv, hiddenSize),
          at("self_attn.v_proj.weight", kv, hiddenSize),
        ],
        qkvBias: [
          ...attentionBias("q_proj", q),
          ...attentionBias("k_proj", kv),
          ...attentionBias("v_proj", kv),
        ],
        output: at("self_attn.o_proj.weight", hiddenSize, q),
        outputBias: attentionBias("o_proj", hiddenSize)[0],
        mlpNorm: at("post_attention_layernorm.weight", hiddenSize),
        gateUp: [
          at("mlp.gate_proj.weight", intermediateSize, hiddenSize),
          at("mlp.up_proj.weight", intermediateSize, hiddenSize),
        ],
        gateUpBias: [
          ...mlpBias("gate_proj", intermediateSize),
          ...mlpBias("up_proj", intermediateSize),
        ],
        down: at("mlp.down_proj.weight", hiddenSize, intermediateSize),
        downBias: mlpBias("down_proj", hiddenSize)[0],
      };
    },
  };
}

import { type ModelConfig, parseConfig } from "./config.ts";

/** What the published config.json of each model says, as far as its shapes and its rotary embedding are concerned. */
const shared = {
  model_type: "llama",
  vocab_size: 128256,
  max_position_embeddings: 131072,
  rms_norm_eps: 1e-5,
  rope_theta: 500000,
  bos_token_id: 128000,
  eos_token_id: [128001, 128008, 128009],
};

const ropeScaling = (factor: number) => ({
  rope_type: "llama3",
  factor,
  low_freq_factor: 1,
  high_freq_factor: 4,
  original_max_position_embeddings: 8192,
});

const presets = {
  "llama-3.2-1b": {
    ...shared,
    hidden_size: 2048,
    intermediate_size: 8192,
    num_hidden_layers: 16,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    head_dim: 64,
    tie_word_embeddings: true,
    rope_scaling: ropeScaling(32),
  },
  "llama-3.1-8b": {
    ...shared,
    hidden_size: 4096,
    intermediate_size: 14336,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: 8,
    tie_word_embeddings: false,
    rope_scaling: ropeScaling(8),
  },
  "llama-3.1-70b": {
    ...shared,
    hidden_size: 8192,
    intermediate_size: 28672,
    num_hidden_layers: 80,
    num_attention_heads: 64,
    num_key_value_heads: 8,
    tie_word_embeddings: false,
    rope_scaling: ropeScaling(8),
  },
} as const;

/** Models whose shapes can be run with random weights, without a checkpoint. */
export const presetNames = Object.keys(presets);

/** The config of a preset; undefined where there is none of this name. */
export function presetConfig(name: string): ModelConfig | undefined {
  return Object.hasOwn(presets, name)
    ? parseConfig(presets[name as keyof typeof presets], name)
    : undefined;
}

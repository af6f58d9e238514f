import { z } from "zod";

/**
 * config.json as Hugging Face writes it is the only source of truth. What the runtime does not do is refused by name, so that no checkpoint runs
 * half right.
 */

const positive = z.number().int().positive();
const tokenIds = z.union([z.number().int(), z.array(z.number().int())]).nullish();

const ropeParameters = z
  .object({
    rope_type: z.string().optional(),
    type: z.string().optional(),
    rope_theta: z.number().positive().optional(),
    factor: z.number().positive().optional(),
    low_freq_factor: z.number().positive().optional(),
    high_freq_factor: z.number().positive().optional(),
    original_max_position_embeddings: positive.optional(),
  })
  .loose();

const rawConfig = z.object({
  model_type: z.string(),
  hidden_size: positive,
  intermediate_size: positive,
  num_hidden_layers: positive,
  num_attention_heads: positive,
  num_key_value_heads: positive.optional(),
  head_dim: positive.nullish(),
  vocab_size: positive,
  max_position_embeddings: positive,
  rms_norm_eps: z.number().positive(),
  hidden_act: z.string().default("silu"),
  rope_theta: z.number().positive().optional(),
  rope_scaling: ropeParameters.nullish(),
  rope_parameters: ropeParameters.nullish(),
  tie_word_embeddings: z.boolean().default(false),
  attention_bias: z.boolean().default(false),
  mlp_bias: z.boolean().default(false),
  bos_token_id: tokenIds,
  eos_token_id: tokenIds,
  sliding_window: z.number().nullish(),
  partial_rotary_factor: z.number().nullish(),
  quantization_config: z.unknown().optional(),
});

export type RopeScaling =
  | { readonly type: "default" }
  | { readonly type: "linear"; readonly factor: number }
  | {
      readonly type: "llama3";
      readonly factor: number;
      readonly lowFreqFactor: number;
      readonly highFreqFactor: number;
      readonly originalMaxPositionEmbeddings: number;
    };

/** What the transformer needs to know of a checkpoint. Sizes in elements. */
export interface ModelConfig {
  readonly family: string;
  readonly hiddenSize: number;
  readonly intermediateSize: number;
  readonly layers: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly vocabSize: number;
  readonly maxPositions: number;
  readonly rmsNormEps: number;
  readonly ropeTheta: number;
  readonly ropeScaling: RopeScaling;
  readonly tiedEmbeddings: boolean;
  readonly attentionBias: boolean;
  readonly mlpBias: boolean;
  readonly bosTokenId: number | undefined;
  readonly eosTokenIds: readonly number[];
}

/** config.json is missing something that matters, or asks for what is not supported. */
export class ConfigError extends Error {
  override readonly name = "ConfigError";
}

/** Parses and checks config.json; `where` names the file in messages. */
export function parseConfig(json: unknown, where: string): ModelConfig {
  const parsed = rawConfig.safeParse(json);
  if (!parsed.success) {
    const issues = parsed.error.issues.map((issue) => {
      const field = issue.path.join(".") || "the file";
      return `${field}: ${issue.message}`;
    });
    throw new ConfigError(
      `${where}: expected a Llama config.json, but ${issues.join("; ")}. ` +
        `Take the config.json that belongs to the checkpoint.`,
    );
  }
  const raw = parsed.data;
  refuse(raw, where);
  const kvHeads = raw.num_key_value_heads ?? raw.num_attention_heads;
  if (raw.num_attention_heads % kvHeads !== 0) {
    throw new ConfigError(
      `${where}: expected num_attention_heads to be a multiple of num_key_value_heads, ` +
        `got ${raw.num_attention_heads} and ${kvHeads}`,
    );
  }
  const headDim = raw.head_dim ?? raw.hidden_size / raw.num_attention_heads;
  if (![64, 96, 128, 256].includes(headDim)) {
    throw new ConfigError(`${where}: expected a head dim of 64, 96, 128 or 256, got ${headDim}`);
  }
  const rope = raw.rope_parameters ?? raw.rope_scaling ?? undefined;
  return {
    family: raw.model_type,
    hiddenSize: raw.hidden_size,
    intermediateSize: raw.intermediate_size,
    layers: raw.num_hidden_layers,
    heads: raw.num_attention_heads,
    kvHeads,
    headDim,
    vocabSize: raw.vocab_size,
    maxPositions: raw.max_position_embeddings,
    rmsNormEps: raw.rms_norm_eps,
    ropeTheta: raw.rope_theta ?? rope?.rope_theta ?? 10_000,
    ropeScaling: parseScaling(rope, where),
    tiedEmbeddings: raw.tie_word_embeddings,
    attentionBias: raw.attention_bias,
    mlpBias: raw.mlp_bias,
    bosTokenId: ids(raw.bos_token_id)[0],
    eosTokenIds: ids(raw.eos_token_id),
  };
}

function refuse(raw: z.infer<typeof rawConfig>, where: string): void {
  const refused: [boolean, string][] = [
    [raw.model_type !== "llama", `model_type "${raw.model_type}" (supported: llama)`],
    [raw.hidden_act !== "silu", `hidden_act "${raw.hidden_act}" (supported: silu)`],
    [raw.sliding_window != null, `sliding_window ${raw.sliding_window}`],
    [
      raw.partial_rotary_factor != null && raw.partial_rotary_factor !== 1,
      `partial_rotary_factor ${raw.partial_rotary_factor}`,
    ],
    [raw.quantization_config != null, "quantization_config (supported: bf16 and f32 weights)"],
  ];
  const found = refused.filter(([bad]) => bad).map(([, text]) => text);
  if (found.length > 0) {
    throw new ConfigError(`${where}: this version does not support ${found.join(", nor ")}`);
  }
}

function parseScaling(
  rope: z.infer<typeof ropeParameters> | undefined,
  where: string,
): RopeScaling {
  const type = rope?.rope_type ?? rope?.type ?? "default";
  const need = (field: keyof z.infer<typeof ropeParameters>): number => {
    const value = rope?.[field];
    if (typeof value !== "number") {
      throw new ConfigError(`${where}: expected ${field} beside RoPE type "${type}", got ${value}`);
    }
    return value;
  };
  switch (type) {
    case "default":
      return { type };
    case "linear":
      return { type, factor: need("factor") };
    case "llama3":
      return {
        type,
        factor: need("factor"),
        lowFreqFactor: need("low_freq_factor"),
        highFreqFactor: need("high_freq_factor"),
        originalMaxPositionEmbeddings: need("original_max_position_embeddings"),
      };
    default:
      throw new ConfigError(
        `${where}: this version does not support RoPE type "${type}" (supported: default, linear, llama3)`,
      );
  }
}

function ids(value: number | number[] | null | undefined): number[] {
  if (value == null) return [];
  return typeof value === "number" ? [value] : value;
}

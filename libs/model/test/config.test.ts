import { describe, expect, test } from "bun:test";
import { ConfigError, inverseFrequencies, parseConfig } from "../src/index.ts";

const base = {
  model_type: "llama",
  hidden_size: 256,
  intermediate_size: 768,
  num_hidden_layers: 8,
  num_attention_heads: 4,
  vocab_size: 4096,
  max_position_embeddings: 16384,
  rms_norm_eps: 1e-5,
  eos_token_id: [1, 2],
  bos_token_id: 0,
};

function fails(change: Record<string, unknown>, ...parts: string[]): void {
  const attempt = () => parseConfig({ ...base, ...change }, "config.json");
  expect(attempt).toThrow(ConfigError);
  for (const part of parts) expect(attempt).toThrow(part);
}

describe("config.json", () => {
  test("defaults are Hugging Face's", () => {
    const config = parseConfig(base, "config.json");
    expect(config).toMatchObject({
      kvHeads: 4,
      headDim: 64,
      ropeTheta: 10_000,
      ropeScaling: { type: "default" },
      tiedEmbeddings: false,
      bosTokenId: 0,
      eosTokenIds: [1, 2],
    });
  });

  test("reads RoPE in both places transformers has kept it", () => {
    const scaling = {
      rope_type: "llama3",
      factor: 8,
      low_freq_factor: 1,
      high_freq_factor: 4,
      original_max_position_embeddings: 8192,
    };
    const old = parseConfig({ ...base, rope_theta: 5e5, rope_scaling: scaling }, "c");
    const recent = parseConfig({ ...base, rope_parameters: { ...scaling, rope_theta: 5e5 } }, "c");
    expect(recent).toEqual(old);
    expect(old.ropeScaling).toEqual({
      type: "llama3",
      factor: 8,
      lowFreqFactor: 1,
      highFreqFactor: 4,
      originalMaxPositionEmbeddings: 8192,
    });
  });

  test("refuses by name what it would run wrongly", () => {
    fails({ model_type: "gemma2" }, 'does not support model_type "gemma2"');
    fails({ hidden_act: "gelu" }, 'hidden_act "gelu"');
    fails({ sliding_window: 4096 }, "sliding_window 4096");
    fails({ partial_rotary_factor: 0.5 }, "partial_rotary_factor 0.5");
    fails({ quantization_config: { bits: 4 } }, "quantization_config");
    fails({ rope_scaling: { rope_type: "yarn", factor: 4 } }, 'RoPE type "yarn"');
    fails({ rope_scaling: { rope_type: "llama3", factor: 4 } }, "expected low_freq_factor");
    fails({ head_dim: 80 }, "expected a head dim of 64, 96, 128 or 256, got 80");
    fails({ num_key_value_heads: 3 }, "got 4 and 3");
    fails({ vocab_size: undefined }, "vocab_size");
    fails({ hidden_size: -1 }, "hidden_size");
  });
});

describe("inverse frequencies", () => {
  const of = (change: object) => inverseFrequencies(parseConfig({ ...base, ...change }, "c"));

  test("default: theta^(-2 i / d)", () => {
    const frequencies = of({});
    expect(frequencies).toHaveLength(32);
    expect(frequencies[0]).toBe(1);
    expect(frequencies[16]).toBeCloseTo(0.01, 8);
  });

  test("linear divides all; llama3 keeps short wavelengths, divides long ones, blends between", () => {
    const plain = of({});
    const linear = of({ rope_scaling: { type: "linear", factor: 4 } });
    for (const [i, frequency] of plain.entries()) expect(linear[i]).toBeCloseTo(frequency / 4, 9);
    const llama3 = of({
      rope_scaling: {
        rope_type: "llama3",
        factor: 8,
        low_freq_factor: 1,
        high_freq_factor: 4,
        original_max_position_embeddings: 1024,
      },
    });
    for (const [i, frequency] of plain.entries()) {
      const turns = (1024 * frequency) / (2 * Math.PI);
      const scaled = llama3[i] as number;
      if (turns > 4) expect(scaled).toBe(frequency);
      else if (turns < 1) expect(scaled).toBeCloseTo(frequency / 8, 9);
      else {
        expect(scaled).toBeLessThan(frequency);
        expect(scaled).toBeGreaterThan(frequency / 8);
      }
    }
  });
});

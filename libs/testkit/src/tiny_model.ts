// Seeded random checkpoints, small enough to load in milliseconds: for what does not depend on a
// model being any good.

import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { toBf16 } from "@magicdec/tensor";
import { Random } from "./random.ts";

export interface TinyModelOptions {
  readonly seed: number;
  readonly hiddenSize?: number;
  readonly intermediateSize?: number;
  readonly layers?: number;
  readonly heads?: number;
  readonly kvHeads?: number;
  readonly headDim?: number;
  readonly vocabSize?: number;
  readonly maxPositions?: number;
  readonly tied?: boolean;
  readonly eosTokenId?: number;
}

/**
 * Writes a Llama checkpoint (config.json, model.safetensors in bf16) into `folder` and returns it.
 */
export async function writeTinyModel(folder: string, options: TinyModelOptions): Promise<string> {
  const {
    seed,
    hiddenSize = 128,
    intermediateSize = 192,
    layers = 2,
    heads = 2,
    kvHeads = heads,
    headDim = 64,
    vocabSize = 320,
    maxPositions = 4096,
    tied = true,
    eosTokenId = 1,
  } = options;
  await mkdir(folder, { recursive: true });
  const config = {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    hidden_size: hiddenSize,
    intermediate_size: intermediateSize,
    num_hidden_layers: layers,
    num_attention_heads: heads,
    num_key_value_heads: kvHeads,
    head_dim: headDim,
    vocab_size: vocabSize,
    max_position_embeddings: maxPositions,
    rms_norm_eps: 1e-5,
    rope_theta: 10000,
    tie_word_embeddings: tied,
    hidden_act: "silu",
    bos_token_id: 0,
    eos_token_id: eosTokenId,
    torch_dtype: "bfloat16",
  };
  await Bun.write(join(folder, "config.json"), JSON.stringify(config, null, 2));
  const shapes: [string, number[]][] = [["model.embed_tokens.weight", [vocabSize, hiddenSize]]];
  for (let i = 0; i < layers; i++) {
    const at = `model.layers.${i}`;
    shapes.push(
      [`${at}.input_layernorm.weight`, [hiddenSize]],
      [`${at}.self_attn.q_proj.weight`, [heads * headDim, hiddenSize]],
      [`${at}.self_attn.k_proj.weight`, [kvHeads * headDim, hiddenSize]],
      [`${at}.self_attn.v_proj.weight`, [kvHeads * headDim, hiddenSize]],
      [`${at}.self_attn.o_proj.weight`, [hiddenSize, heads * headDim]],
      [`${at}.post_attention_layernorm.weight`, [hiddenSize]],
      [`${at}.mlp.gate_proj.weight`, [intermediateSize, hiddenSize]],
      [`${at}.mlp.up_proj.weight`, [intermediateSize, hiddenSize]],
      [`${at}.mlp.down_proj.weight`, [hiddenSize, intermediateSize]],
    );
  }
  shapes.push(["model.norm.weight", [hiddenSize]]);
  if (!tied) shapes.push(["lm_head.weight", [vocabSize, hiddenSize]]);
  await Bun.write(join(folder, "model.safetensors"), safetensors(shapes, new Random(seed)));
  return folder;
}

function safetensors(shapes: readonly [string, number[]][], random: Random): Uint8Array {
  const header: Record<string, unknown> = {};
  const parts: Uint16Array[] = [];
  let offset = 0;
  for (const [name, shape] of shapes) {
    const elements = shape.reduce((product, size) => product * size, 1);
    const values = new Float32Array(elements);
    // Vectors are norms, near 1; matrices keep the scale of their input. Queries and keys are
    // larger, so that attention is not flat.
    const fanIn = shape[1];
    const sharp = /[qk]_proj/.test(name) ? 3 : 1;
    for (let i = 0; i < elements; i++) {
      values[i] =
        fanIn === undefined
          ? 1 + 0.1 * random.normal()
          : (sharp * random.normal()) / Math.sqrt(fanIn);
    }
    parts.push(toBf16(values));
    header[name] = { dtype: "BF16", shape, data_offsets: [offset, offset + 2 * elements] };
    offset += 2 * elements;
  }
  const json = new TextEncoder().encode(JSON.stringify(header));
  const padded = Math.ceil(json.length / 8) * 8;
  const out = new Uint8Array(8 + padded + offset).fill(0x20, 8, 8 + padded);
  new DataView(out.buffer).setUint32(0, padded, true);
  out.set(json, 8);
  let at = 8 + padded;
  for (const part of parts) {
    out.set(new Uint8Array(part.buffer, part.byteOffset, part.byteLength), at);
    at += part.byteLength;
  }
  return out;
}

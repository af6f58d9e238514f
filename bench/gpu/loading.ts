// `bun run bench:loading`: how fast a checkpoint of a given shape comes from the page cache onto the device, and how much
// of the host's memory that takes. The checkpoint is written first, and removed at the end.

import {
  closeSync,
  mkdtempSync,
  openSync,
  readFileSync,
  rmSync,
  writeFileSync,
  writeSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import type { DeviceName } from "@magicdec/engine";
import { Model, type ModelConfig, Noise, presetConfig, presetNames } from "@magicdec/model";
import { Device, deviceOptions, singleRank, toBf16 } from "@magicdec/tensor";
import { provenance } from "./provenance.ts";

const help = `bun run bench:loading [options]

Writes a checkpoint of random bf16 safetensors with the shapes of a model, loads it as the engine does,
and says how fast, and what host memory of its own the process took meanwhile. About 30 s for 16 GB.

  --model NAME    ${presetNames.join(", ")} (default: llama-3.1-8b)
  --device NAME   cuda, cuda:N or cpu (default: cuda)
  --folder PATH   where the checkpoint is written (default: the system's temporary folder)
  --runs N        times it is loaded (default: 3)
  --out FILE      write the figures there as JSON too
  --help          this text
`;

interface Options {
  readonly model: string;
  readonly config: ModelConfig;
  readonly device: DeviceName;
  readonly folder: string;
  readonly runs: number;
  readonly out: string | undefined;
}

function parseOptions(argv: readonly string[]): Options | "help" {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      model: { type: "string", default: "llama-3.1-8b" },
      device: { type: "string", default: "cuda" },
      folder: { type: "string", default: tmpdir() },
      runs: { type: "string", default: "3" },
      out: { type: "string" },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) return "help";
  const config = presetConfig(values.model);
  if (config === undefined) {
    throw new RangeError(
      `--model: expected one of ${presetNames.join(", ")}, got "${values.model}"`,
    );
  }
  const runs = Number(values.runs);
  if (!Number.isInteger(runs) || runs < 1) {
    throw new RangeError(`--runs: expected an integer from 1 on, got "${values.runs}"`);
  }
  const { model, folder, out } = values;
  return { model, config, device: values.device as DeviceName, folder: resolve(folder), runs, out };
}

type Shape = readonly [name: string, shape: readonly number[]];

/** Tensors of a Hugging Face Llama checkpoint, those of a layer together. */
function tensorsOf(config: ModelConfig): Shape[][] {
  const { hiddenSize, intermediateSize, vocabSize, heads, kvHeads, headDim, layers } = config;
  const ends: Shape[] = [
    ["model.embed_tokens.weight", [vocabSize, hiddenSize]],
    ["model.norm.weight", [hiddenSize]],
  ];
  if (!config.tiedEmbeddings) ends.push(["lm_head.weight", [vocabSize, hiddenSize]]);
  const layer = (at: string): Shape[] => [
    [`${at}.input_layernorm.weight`, [hiddenSize]],
    [`${at}.self_attn.q_proj.weight`, [heads * headDim, hiddenSize]],
    [`${at}.self_attn.k_proj.weight`, [kvHeads * headDim, hiddenSize]],
    [`${at}.self_attn.v_proj.weight`, [kvHeads * headDim, hiddenSize]],
    [`${at}.self_attn.o_proj.weight`, [hiddenSize, heads * headDim]],
    [`${at}.post_attention_layernorm.weight`, [hiddenSize]],
    [`${at}.mlp.gate_proj.weight`, [intermediateSize, hiddenSize]],
    [`${at}.mlp.up_proj.weight`, [intermediateSize, hiddenSize]],
    [`${at}.mlp.down_proj.weight`, [hiddenSize, intermediateSize]],
  ];
  return [ends, ...Array.from({ length: layers }, (_, i) => layer(`model.layers.${i}`))];
}

/** As published checkpoints are: a few shards and an index. */
function writeCheckpoint(folder: string, config: ModelConfig): number {
  const drawn = toBf16(new Noise(1).normals(1 << 22, 0.02));
  const noise = new Uint8Array(drawn.buffer, drawn.byteOffset, drawn.byteLength);
  const groups = tensorsOf(config);
  const shards = 4;
  const each = Math.ceil(groups.length / shards);
  const weightMap: Record<string, string> = {};
  let total = 0;
  for (let i = 0; i < shards; i++) {
    const tensors = groups.slice(i * each, (i + 1) * each).flat();
    const file = `model-${i + 1}-of-${shards}.safetensors`;
    total += writeShard(join(folder, file), tensors, noise);
    for (const [name] of tensors) weightMap[name] = file;
  }
  const index = { metadata: { total_size: total }, weight_map: weightMap };
  writeFileSync(join(folder, "model.safetensors.index.json"), JSON.stringify(index));
  writeFileSync(join(folder, "config.json"), JSON.stringify(rawConfig(config)));
  return total;
}

function writeShard(path: string, tensors: readonly Shape[], noise: Uint8Array): number {
  const header: Record<string, unknown> = {};
  let bytes = 0;
  for (const [name, shape] of tensors) {
    const end = bytes + 2 * shape.reduce((product, size) => product * size, 1);
    header[name] = { dtype: "BF16", shape, data_offsets: [bytes, end] };
    bytes = end;
  }
  const text = JSON.stringify(header);
  const json = new TextEncoder().encode(text.padEnd(Math.ceil(text.length / 8) * 8));
  const length = new Uint8Array(8);
  new DataView(length.buffer).setUint32(0, json.byteLength, true);
  const file = openSync(path, "w");
  try {
    writeSync(file, length);
    writeSync(file, json);
    for (let left = bytes; left > 0; left -= noise.byteLength) {
      writeSync(file, noise, 0, Math.min(left, noise.byteLength));
    }
  } finally {
    closeSync(file);
  }
  return bytes;
}

/** The part of config.json that is read; the rotary embedding's scaling changes no tensor. */
function rawConfig(config: ModelConfig): Record<string, unknown> {
  return {
    architectures: ["LlamaForCausalLM"],
    model_type: "llama",
    hidden_size: config.hiddenSize,
    intermediate_size: config.intermediateSize,
    num_hidden_layers: config.layers,
    num_attention_heads: config.heads,
    num_key_value_heads: config.kvHeads,
    head_dim: config.headDim,
    vocab_size: config.vocabSize,
    max_position_embeddings: config.maxPositions,
    rms_norm_eps: config.rmsNormEps,
    rope_theta: config.ropeTheta,
    tie_word_embeddings: config.tiedEmbeddings,
    hidden_act: "silu",
    torch_dtype: "bfloat16",
  };
}

/** Bytes of a line of /proc/self/status. */
function statusBytes(name: string): number {
  const status = readFileSync("/proc/self/status", "utf8");
  return 1024 * Number(new RegExp(`^${name}:\\s+(\\d+) kB$`, "m").exec(status)?.[1] ?? 0);
}

async function loadOnce(device: Device, folder: string) {
  const before = statusBytes("RssAnon");
  let most = before;
  const from = performance.now();
  using model = await Model.load(device, singleRank, folder, () => {
    most = Math.max(most, statusBytes("RssAnon"));
  });
  device.stream.sync();
  return { ms: performance.now() - from, hostBytes: most - before, bytes: model.allocatedBytes };
}

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2));
  if (options === "help") return void process.stdout.write(help);
  const { model, config, runs, out } = options;
  const folder = mkdtempSync(join(options.folder, "magicdec-loading-"));
  try {
    const from = performance.now();
    const bytes = writeCheckpoint(folder, config);
    const seconds = (performance.now() - from) / 1e3;
    console.log(`wrote ${(bytes / 1e9).toFixed(1)} GB to ${folder} in ${seconds.toFixed(1)} s`);
    using device = Device.open(deviceOptions(options.device));
    const samples = [];
    for (let i = 0; i < runs; i++) {
      const { ms, hostBytes } = await loadOnce(device, folder);
      samples.push({ ms, hostBytes, gigabytesPerSecond: bytes / ms / 1e6 });
      const rate = (bytes / ms / 1e6).toFixed(2);
      const host = (hostBytes / 2 ** 20).toFixed(0);
      console.log(`loaded in ${ms.toFixed(0)} ms: ${rate} GB/s, ${host} MiB of host memory`);
    }
    const result = { provenance: provenance(device), model, bytes, samples };
    if (out !== undefined) writeFileSync(out, `${JSON.stringify(result, null, 1)}\n`);
  } finally {
    rmSync(folder, { recursive: true, force: true });
  }
}

try {
  await main();
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  console.error(`bench:loading: ${message} (--help lists the options)`);
  process.exitCode = 1;
}

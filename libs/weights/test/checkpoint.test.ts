import { describe, expect, test } from "bun:test";
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { Checkpoint, CheckpointError } from "../src/index.ts";
import { layOut, safetensors, scratchFolder } from "./files.ts";

const root = scratchFolder();
let made = 0;

/** Writes a model folder; strings and JSON values become text, byte arrays stay. */
async function model(files: Record<string, unknown>): Promise<string> {
  const folder = join(root, `model-${made++}`);
  mkdirSync(folder);
  for (const [name, content] of Object.entries(files)) {
    const raw = content instanceof Uint8Array || typeof content === "string";
    await Bun.write(join(folder, name), raw ? content : JSON.stringify(content));
  }
  return folder;
}

type Tensors = Parameters<typeof layOut>[0];

function weights(tensors: Tensors): Uint8Array {
  const { header, dataBytes } = layOut(tensors);
  return safetensors(header, dataBytes);
}

const config = { model_type: "llama" };
const embedding: Tensors = { "embed.weight": { dtype: "BF16", shape: [8, 4] } };
const norm: Tensors = { "norm.weight": { dtype: "F32", shape: [4] } };
const [first, second] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
const weightMap = { "embed.weight": first, "norm.weight": second };
const index = "model.safetensors.index.json";

describe("a good folder", () => {
  test("with one file", async () => {
    const folder = await model({
      "config.json": config,
      "model.safetensors": weights({ ...embedding, ...norm }),
    });
    const checkpoint = await Checkpoint.open(folder);
    expect(checkpoint.config).toEqual(config);
    expect(checkpoint.names).toEqual(["embed.weight", "norm.weight"]);
    expect(checkpoint.bytes).toBe(64 + 16);
    const tensor = checkpoint.requireTensor("embed.weight", [8, 4]);
    expect(tensor.file.path).toBe(join(folder, "model.safetensors"));
    expect(tensor.offset).toBe(tensor.file.dataStart);
    expect(tensor.bytes).toBe(64);
    expect(checkpoint.unusedTensors()).toEqual(["norm.weight"]);
    checkpoint.requireTensor("norm.weight", [4]);
    expect(checkpoint.unusedTensors()).toEqual([]);
  });

  test("with shards", async () => {
    const folder = await model({
      "config.json": config,
      [index]: { metadata: { total_size: 80 }, weight_map: weightMap },
      [first]: weights(embedding),
      [second]: weights(norm),
    });
    const checkpoint = await Checkpoint.open(folder);
    expect(checkpoint.files.map(({ path }) => path)).toEqual([
      join(folder, first),
      join(folder, second),
    ]);
    expect(checkpoint.tensor("norm.weight")?.file.path).toBe(join(folder, second));
  });
});

describe("a folder that is no model", () => {
  const one = weights(embedding);
  const sharded = { "config.json": config, [first]: one, [second]: weights(norm) };
  const wanted = "expected a folder with config.json and model.safetensors";
  const cases: [what: string, files: Record<string, unknown>, says: string][] = [
    ["no config.json", { "model.safetensors": one }, `${wanted} `],
    ["no weights", { "config.json": config }, "got a folder without weights"],
    [
      "other weights",
      { "config.json": config, "a.bin": "" },
      'got a folder with ["a.bin"] instead',
    ],
    ["a broken config.json", { "config.json": "{", "model.safetensors": one }, "file to be JSON"],
    ["a config.json of a list", { "config.json": [] }, "a JSON object, got an array"],
    ["an empty file", { "config.json": config, "model.safetensors": "" }, "got 0 bytes; the file"],
    ["no weight_map", { ...sharded, [index]: {} }, "weight_map to be an object of tensor name"],
    ["a weight_map of numbers", { ...sharded, [index]: { weight_map: { a: 1 } } }, 'got {"a":1}'],
    ["an empty weight_map", { ...sharded, [index]: { weight_map: {} } }, "got an empty one"],
    [
      "a shard outside the folder",
      { ...sharded, [index]: { weight_map: { a: "../model.safetensors" } } },
      'file in this folder, got "../model.safetensors" for tensor "a"; the download',
    ],
    [
      "a shard that is not there",
      { ...sharded, [index]: { weight_map: { a: "model-3.safetensors" } } },
      'the shard "model-3.safetensors" beside it, got a folder without this file',
    ],
    [
      "a tensor missing in its shard",
      { ...sharded, [index]: { weight_map: { ...weightMap, "head.weight": second } } },
      'tensor "head.weight": expected the tensor here, as model.safetensors.index.json says, got a',
    ],
    [
      "a tensor in another shard",
      { ...sharded, [index]: { weight_map: { ...weightMap, "norm.weight": first, x: second } } },
      "says, got it in ",
    ],
    [
      "a tensor in two shards",
      {
        ...sharded,
        [second]: weights({ ...norm, ...embedding }),
        [index]: { weight_map: weightMap },
      },
      'tensor "embed.weight": expected the tensor in one shard only, got it here and in',
    ],
  ];
  test.each(cases)("%s", async (_what, files, says) => {
    const error = await Checkpoint.open(await model(files)).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(CheckpointError);
    expect((error as CheckpointError).message).toContain(says);
  });

  test("nothing at the path", async () => {
    const open = Checkpoint.open(join(root, "no-such-model"));
    await expect(open).rejects.toThrow(
      /no-such-model: expected a folder with config.json.*, got nothing at this path; give the path/,
    );
  });

  test("a file", async () => {
    const folder = await model({ "config.json": config });
    await expect(Checkpoint.open(join(folder, "config.json"))).rejects.toThrow(
      /, got a file; give/,
    );
  });
});

describe("a tensor that does not fit", () => {
  const open = async () =>
    Checkpoint.open(
      await model({
        "config.json": config,
        "model.safetensors": weights({ ...embedding, ids: { dtype: "U8", shape: [4] } }),
      }),
    );

  test("is missing", async () => {
    const checkpoint = await open();
    expect(() => checkpoint.requireTensor("lm_head.weight", [8, 4])).toThrow(
      /"lm_head.weight": expected BF16 or F32 \[8,4\], got no tensor of this name among .* 2; check/,
    );
  });

  test("has another shape", async () => {
    const checkpoint = await open();
    expect(() => checkpoint.requireTensor("embed.weight", [4, 8])).toThrow(
      /"embed.weight": expected BF16 or F32 \[4,8\], got BF16 \[8,4\]; check that config.json/,
    );
    expect(checkpoint.unusedTensors()).toContain("embed.weight");
  });

  test("has a dtype that cannot be packed", async () => {
    const checkpoint = await open();
    expect(() => checkpoint.requireTensor("ids", [4])).toThrow(
      /"ids": expected BF16 or F32 \[4\], got U8 \[4\]; convert the checkpoint to bfloat16/,
    );
  });
});

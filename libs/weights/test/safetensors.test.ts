import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { CheckpointError, parseSafetensors, readSafetensors } from "../src/index.ts";
import { layOut, safetensors, scratchFolder } from "./files.ts";

const folder = scratchFolder();

function parse(bytes: Uint8Array<ArrayBuffer>, fileBytes = bytes.length) {
  return parseSafetensors("m.safetensors", bytes, fileBytes);
}

/** The message of the CheckpointError that `act` throws. */
function messageOf(act: () => unknown): string {
  try {
    act();
  } catch (error) {
    expect(error).toBeInstanceOf(CheckpointError);
    return (error as CheckpointError).message;
  }
  throw new Error("expected a CheckpointError, nothing was thrown");
}

const f32 = (shape: unknown, data_offsets: unknown, dtype: unknown = "F32") => ({
  dtype,
  shape,
  data_offsets,
});

describe("a valid file", () => {
  const { header, dataBytes } = layOut({
    "model.embed_tokens.weight": { dtype: "BF16", shape: [320, 64] },
    "model.norm.weight": { dtype: "F32", shape: [64] },
    scalar: { dtype: "F32", shape: [] },
    empty: { dtype: "U8", shape: [0, 7] },
  });
  const bytes = safetensors(header, dataBytes);

  test("gives dtype, shape and place of each tensor", () => {
    const file = parse(bytes);
    const start = file.dataStart;
    expect(file.headerBytes).toBe(bytes.length - dataBytes);
    expect(file.header).toEqual(bytes.slice(0, start));
    expect(file.metadata).toEqual({ format: "pt" });
    expect(Object.fromEntries(file.tensors)).toEqual({
      "model.embed_tokens.weight": {
        dtype: "BF16",
        shape: [320, 64],
        offset: start,
        bytes: 40960,
      },
      "model.norm.weight": { dtype: "F32", shape: [64], offset: start + 40960, bytes: 256 },
      scalar: { dtype: "F32", shape: [], offset: start + 41216, bytes: 4 },
      empty: { dtype: "U8", shape: [0, 7], offset: start + 41220, bytes: 0 },
    });
  });

  test("reads the same from disk, header only", async () => {
    const path = join(folder, "valid.safetensors");
    await Bun.write(path, bytes);
    expect(await readSafetensors(path)).toEqual({ ...parse(bytes), path });
  });

  test("may hold its tensors in any order, and spaces after the JSON", () => {
    const json = JSON.stringify({ b: f32([2], [4, 12]), a: f32([1], [0, 4]) });
    const file = parse(safetensors(undefined, 12, { json: `${json}   ` }));
    expect([...file.tensors.keys()]).toEqual(["b", "a"]);
  });

  test("may name a tensor like a property of every object", () => {
    const json = '{"__proto__":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}';
    const file = parse(safetensors(undefined, 1, { json }));
    expect(file.tensors.get("__proto__")?.bytes).toBe(1);
  });
});

describe("a bad file", () => {
  const one = { a: f32([1], [0, 4]) };
  const huge = "x".repeat(1000);
  const repeated = '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"\\u0061":{}}';
  const cases: [what: string, bytes: Uint8Array<ArrayBuffer>, says: RegExp][] = [
    ["empty", new Uint8Array(0), /8 bytes of header length, got 0 bytes; the file is cut short/],
    ["a header length past the end", safetensors(one, 4, { jsonBytes: 999 }), /length of 999 in a/],
    ["a header length past 4 GiB", safetensors(one, 4, { jsonBytes: 2 ** 40 }), /1099511627776/],
    ["a header length of 0", safetensors(one, 4, { jsonBytes: 0 }), /a length of 0/],
    ["no JSON object", safetensors([], 0), /start with "\{", got byte 91/],
    ["broken JSON", safetensors(0, 0, { json: '{"a":' }), /the header to be JSON, got text that/],
    ["not UTF-8", safetensors(one, 4).fill(0xff, 10, 12), /the header to be UTF-8/],
    ["nesting without end", safetensors(0, 0, { json: `{"a":${"[".repeat(1e6)}` }), /to be JSON/],
    ["a name twice", safetensors(0, 0, { json: repeated }), /once, got "a" twice in one object/],
    [
      "metadata of numbers",
      safetensors({ __metadata__: { a: 1 } }),
      /__metadata__ to be an object/,
    ],
    [
      "an entry that is none",
      safetensors({ a: 7 }),
      /tensor "a": expected an object.*got a number/,
    ],
    ["an unknown dtype", safetensors({ a: f32([1], [0, 4], "Q4") }, 4), /dtype of BOOL,.*got "Q4"/],
    ["an inherited dtype", safetensors({ a: f32([1], [0, 4], "toString") }, 4), /got "toString"/],
    ["a negative size", safetensors({ a: f32([-1], [0, 4]) }, 4), /0 or more, got \[-1\]/],
    ["a broken size", safetensors({ a: f32([0.5], [0, 2]) }, 2), /got \[0.5\]/],
    ["a size past 2^53", safetensors({ a: f32([2 ** 54], [0, 4]) }, 4), /shape of whole numbers/],
    ["a product past 2^53", safetensors({ a: f32([2 ** 50, 64], [0, 4]) }, 4), /fewer than 2\^53/],
    ["one offset", safetensors({ a: f32([1], [0]) }, 4), /\[begin, end\].*got \[0\]/],
    [
      "offsets backwards",
      safetensors({ a: f32([1], [4, 0]) }, 4),
      /4 bytes for F32 \[1\].*-4 bytes/,
    ],
    ["size against shape", safetensors({ a: f32([2], [0, 4]) }, 4), /8 bytes for F32 \[2\].*is 4/],
    ["data past the end", safetensors(one, 3), /inside the file's 3 data bytes.*cut short/],
    [
      "an overlap",
      safetensors({ a: f32([2], [0, 8]), b: f32([1], [4, 8]) }, 8),
      /tensor "b": expected data to start at byte 8.*got byte 4, an overlap with "a"/,
    ],
    ["a hole", safetensors({ a: f32([1], [4, 8]) }, 8), /at byte 0,.*got byte 4, a hole before it/],
    ["bytes left over", safetensors(one, 5), /a file of \d+ bytes, as its tensors need, got/],
    ["an endless name", safetensors({ [huge]: 7 }), /tensor "x{79}\.\.\.: expected/],
  ];
  test.each(cases)("%s", (_what, bytes, says) => {
    expect(messageOf(() => parse(bytes))).toMatch(says);
  });

  test("a header shorter than it says", () => {
    const bytes = safetensors(one, 4);
    const message = messageOf(() => parse(bytes.slice(0, 20), bytes.length));
    expect(message).toMatch(/bytes of header, got 20; the file is cut short/);
  });

  test("nothing at the path, or a folder", async () => {
    const missing = join(folder, "none.safetensors");
    await expect(readSafetensors(missing)).rejects.toThrow(
      /a readable safetensors file, got ENOENT/,
    );
    await expect(readSafetensors(folder)).rejects.toThrow(/got something that is not a file/);
  });
});

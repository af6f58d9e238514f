import { expect, test } from "bun:test";
import { join } from "node:path";
import fc from "fast-check";
import { Checkpoint, CheckpointError, parseSafetensors, readSafetensors } from "../src/index.ts";
import type { SafetensorsFile } from "../src/index.ts";
import { layOut, safetensors, scratchFolder } from "./files.ts";

/**
 * Whatever happens to a valid file, the reader either refuses it with a CheckpointError or returns
 * tensors that tile the data exactly, so that nobody who trusts its result reads outside the file.
 */

const folder = scratchFolder();

const shapes = fc.array(fc.integer({ min: 0, max: 9 }), { maxLength: 4 });
const tensor = fc.record({ dtype: fc.constantFrom("F32", "BF16", "U8"), shape: shapes });
const tensors = fc.dictionary(fc.string({ maxLength: 12 }), tensor, { maxKeys: 6 });
const layout = tensors.map((entries) => {
  const { __metadata__: _, ...named } = entries;
  return layOut(named);
});

/** Values that a hostile header may hold in any place. */
const hostile = fc.oneof(
  fc.constantFrom<unknown>(null, -1, 0.5, 2 ** 53, 1e308, "F32", "", [], {}, [0, 0], [[0]], true),
  fc.integer(),
  fc.double(),
  fc.jsonValue({ maxDepth: 2 }),
);

const flippedBits = fc
  .tuple(layout, fc.array(fc.nat(), { minLength: 1, maxLength: 8 }))
  .map(([{ header, dataBytes }, flips]) => {
    const bytes = safetensors(header, dataBytes);
    for (const flip of flips) {
      const at = flip % bytes.length;
      bytes[at] = (bytes[at] ?? 0) ^ (1 << (flip % 8));
    }
    return bytes;
  });

const truncated = fc.tuple(layout, fc.nat()).map(([{ header, dataBytes }, length]) => {
  const bytes = safetensors(header, dataBytes);
  return bytes.slice(0, length % bytes.length);
});

const editedHeader = fc
  .tuple(layout, fc.nat(), fc.constantFrom("dtype", "shape", "data_offsets", "", "new"), hostile)
  .map(([{ header, dataBytes }, which, field, value]) => {
    const names = Object.keys(header);
    const name = names[which % names.length] ?? "";
    const entry = header[name];
    header[name] = field === "" ? value : { ...(entry as object), [field]: value };
    return safetensors(header, dataBytes);
  });

const movedOffset = fc
  .tuple(layout, fc.nat(), fc.integer({ min: -9, max: 9 }), fc.integer({ min: -9, max: 9 }))
  .map(([{ header, dataBytes }, which, from, to]) => {
    const names = Object.keys(header).filter((name) => name !== "__metadata__");
    const entry = header[names[which % names.length] ?? ""] as
      { data_offsets: number[] } | undefined;
    const [begin = 0, end = 0] = entry?.data_offsets ?? [];
    if (entry !== undefined) entry.data_offsets = [begin + from, end + to];
    return safetensors(header, dataBytes);
  });

const splicedText = fc
  .tuple(layout, fc.nat(), fc.nat({ max: 20 }), fc.string({ maxLength: 12 }))
  .map(([{ header, dataBytes }, at, cut, text]) => {
    const json = JSON.stringify(header);
    const start = at % json.length;
    const edited = json.slice(0, start) + text + json.slice(start + cut);
    return safetensors(undefined, dataBytes, { json: edited });
  });

const noise = fc
  .tuple(fc.uint8Array({ maxLength: 64 }), fc.nat({ max: 80 }))
  .map(([bytes, length]) => safetensors(0, 0, { json: `{${bytes}}`, jsonBytes: length }));

const mutated = fc.oneof(
  flippedBits,
  truncated,
  editedHeader,
  movedOffset,
  splicedText,
  noise,
  fc.uint8Array({ maxLength: 100 }).map((bytes) => new Uint8Array(bytes)),
);

function checkTiles(file: SafetensorsFile): void {
  const places = [...file.tensors.values()].sort(
    (a, b) => a.offset - b.offset || a.bytes - b.bytes,
  );
  let end = file.dataStart;
  for (const { offset, bytes, shape } of places) {
    expect(offset).toBe(end);
    expect(shape.every((size) => Number.isInteger(size) && size >= 0)).toBe(true);
    end += bytes;
  }
  expect(end).toBe(file.fileBytes);
}

test("every valid file is read", () => {
  fc.assert(
    fc.property(layout, ({ header, dataBytes }) => {
      const bytes = safetensors(header, dataBytes);
      const file = parseSafetensors("valid", bytes, bytes.length);
      checkTiles(file);
      expect([...file.tensors.keys(), "__metadata__"].sort()).toEqual(Object.keys(header).sort());
    }),
    { numRuns: 300 },
  );
});

test("every mutation is refused by a CheckpointError or tiles its file", () => {
  let refused = 0;
  fc.assert(
    fc.property(mutated, (bytes) => {
      try {
        checkTiles(parseSafetensors("mutated", bytes, bytes.length));
      } catch (error) {
        if (!(error instanceof CheckpointError)) throw error;
        expect(error.message.length).toBeLessThan(500);
        refused++;
      }
    }),
    { numRuns: 4000 },
  );
  // A generator that damages nothing would pass as well.
  expect(refused).toBeGreaterThan(2000);
}, 30_000);

test("a hostile index or config is refused by a CheckpointError", async () => {
  await Bun.write(join(folder, "a.safetensors"), safetensors(layOut({}).header));
  const name = fc.constantFrom("a.safetensors", "../a.safetensors", "/a.safetensors", "b", "");
  const entry = fc.oneof(name, hostile);
  const index = fc.oneof(
    hostile,
    fc.record({ weight_map: fc.oneof(hostile, fc.dictionary(fc.string(), entry, { maxKeys: 3 })) }),
  );
  await fc.assert(
    fc.asyncProperty(index, hostile, async (weightMap, config) => {
      await Bun.write(join(folder, "model.safetensors.index.json"), JSON.stringify(weightMap));
      await Bun.write(join(folder, "config.json"), JSON.stringify(config) ?? "");
      await expect(Checkpoint.open(folder)).rejects.toBeInstanceOf(CheckpointError);
    }),
    { numRuns: 300 },
  );
});

test("reading from disk refuses the same files", async () => {
  const path = join(folder, "mutated.safetensors");
  const outcome = async (read: () => unknown) => {
    try {
      await read();
      return "read";
    } catch (error) {
      if (!(error instanceof CheckpointError)) throw error;
      return error.message;
    }
  };
  await fc.assert(
    fc.asyncProperty(mutated, async (bytes) => {
      await Bun.write(path, bytes);
      const onDisk = await outcome(() => readSafetensors(path));
      expect(onDisk).toBe(await outcome(() => parseSafetensors(path, bytes, bytes.length)));
    }),
    { numRuns: 200 },
  );
});

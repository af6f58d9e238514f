import { afterAll } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";

/** A fresh folder that goes when the test file ends. */
export function scratchFolder(): string {
  const folder = mkdtempSync(join(tmpdir(), "magicdec-weights-"));
  afterAll(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** A safetensors file around any header, valid or not. */
export function safetensors(
  header: unknown,
  dataBytes = 0,
  { json = JSON.stringify(header), jsonBytes }: { json?: string; jsonBytes?: number } = {},
): Uint8Array<ArrayBuffer> {
  const text = new TextEncoder().encode(json);
  const file = new Uint8Array(8 + text.length + dataBytes);
  const length = jsonBytes ?? text.length;
  const view = new DataView(file.buffer);
  view.setUint32(0, length % 2 ** 32, true);
  view.setUint32(4, Math.floor(length / 2 ** 32), true);
  file.set(text, 8);
  return file;
}

/** A header of tensors one after the other, and the bytes of their data. */
export function layOut(
  tensors: Record<string, { dtype: "F32" | "BF16" | "U8"; shape: number[] }>,
): { header: Record<string, unknown>; dataBytes: number } {
  const sizes = { F32: 4, BF16: 2, U8: 1 };
  let dataBytes = 0;
  const entries = Object.entries(tensors).map(([name, { dtype, shape }]) => {
    const begin = dataBytes;
    dataBytes += shape.reduce((a, b) => a * b, sizes[dtype]);
    return [name, { dtype, shape, data_offsets: [begin, dataBytes] }] as const;
  });
  // From entries, so that a tensor may be called __proto__.
  const header = Object.fromEntries<unknown>([["__metadata__", { format: "pt" }], ...entries]);
  return { header, dataBytes };
}

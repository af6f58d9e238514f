// What a user is told where the library is missing, of another ABI, or for another machine. Each
// case is a process of its own, since a process loads the library once.

import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { abiHash, libraryPath, loadLibrary, symbols } from "../src/index.ts";

let folder = "";
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "magicdec-abi-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

/** Loads the library that MAGICDEC_LIB names in a child, and returns the message it fails with. */
async function loadFailure(path: string): Promise<string> {
  const script = `
    import { loadLibrary } from "./src/index.ts";
    try { loadLibrary(); } catch (error) { console.log(error.name + ": " + error.message); }`;
  const child = Bun.spawn([process.execPath, "-e", script], {
    cwd: join(import.meta.dir, ".."),
    env: { ...Bun.env, MAGICDEC_LIB: path },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  expect(await child.exited, err).toBe(0);
  return out.trim();
}

/** A copy of the library with other bytes. */
function altered(name: string, alter: (bytes: Uint8Array) => void): string {
  const bytes = new Uint8Array(readFileSync(libraryPath()));
  alter(bytes);
  const path = join(folder, name);
  writeFileSync(path, bytes);
  return path;
}

test("the library of this tree loads and answers", () => {
  const library = loadLibrary();
  expect(loadLibrary()).toBe(library);
  expect(library.symbols.md_abi_hash_low()).toBe(abiHash.low);
  for (const name of Object.keys(symbols)) {
    expect(typeof Reflect.get(library.symbols, name), name).toBe("function");
  }
});

test("a missing library names its place and the command that builds it", async () => {
  const path = join(folder, "nowhere.so");
  const message = await loadFailure(path);
  expect(message).toStartWith("LibraryError: ");
  expect(message).toContain(path);
  expect(message).toContain("run `bun run build`");
});

test("a file that is no library keeps the loader's own text", async () => {
  const path = join(folder, "text.so");
  writeFileSync(path, "this is not a library");
  const message = await loadFailure(path);
  expect(message).toMatch(
    /expected a library that this machine can load; run `bun run build` \(.+\)/,
  );
});

test("a library without our functions is refused", async () => {
  const other = altered("other.so", (bytes) => {
    replaceAll(bytes, "md_abi_hash_low", "xx_abi_hash_low");
  });
  expect(await loadFailure(other)).toContain("md_abi_hash_low");
});

test.skipIf(process.arch !== "x64")("another ABI hash shows both", async () => {
  const low = new Uint8Array(Uint32Array.of(abiHash.low).buffer);
  const path = altered("hash.so", (bytes) => {
    for (let at = find(bytes, low, 0); at >= 0; at = find(bytes, low, at + 1)) {
      bytes[at] = (bytes[at] as number) ^ 1;
    }
  });
  const message = await loadFailure(path);
  const text = (word: number) => (word >>> 0).toString(16).padStart(8, "0");
  expect(message).toContain(`expected ABI 1 (hash ${text(abiHash.high)}${text(abiHash.low)})`);
  expect(message).toContain(`(hash ${text(abiHash.high)}${text(abiHash.low ^ 1)})`);
  expect(message).toContain("run `bun run build`");
});

test.skipIf(process.platform !== "linux")("a library for another machine is named", async () => {
  const arm = 0xb7;
  const x64 = 0x3e;
  const path = altered("machine.so", (bytes) => {
    bytes[18] = process.arch === "x64" ? arm : x64;
  });
  const other = process.arch === "x64" ? "arm64" : "x64";
  expect(await loadFailure(path)).toContain(
    `expected a library for linux-${process.arch}, got one for linux-${other}`,
  );
});

function find(bytes: Uint8Array, wanted: Uint8Array, from: number): number {
  return Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).indexOf(wanted, from);
}

function replaceAll(bytes: Uint8Array, from: string, to: string): void {
  const wanted = new TextEncoder().encode(from);
  for (let at = find(bytes, wanted, 0); at >= 0; at = find(bytes, wanted, at + 1)) {
    bytes.set(new TextEncoder().encode(to), at);
  }
}

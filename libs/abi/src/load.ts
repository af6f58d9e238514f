// Finds, checks and opens libmagicdec. A library of another ABI is refused before any call could
// misread its arguments.

import { dlopen, suffix } from "bun:ffi";
import { existsSync } from "node:fs";
import { resolve } from "node:path";
import { abiHash, abiVersion, type NativeLibrary, Status, symbols } from "./abi.gen.ts";
import { LibraryError, StatusError, type StatusName } from "./error.ts";
import { libraryMachine, thisMachine } from "./machine.ts";
import { DescriptorRing } from "./ring.ts";

const rebuild = "run `bun run build`";

const { md_abi_version, md_abi_hash_low, md_abi_hash_high } = symbols;
const identitySymbols = { md_abi_version, md_abi_hash_low, md_abi_hash_high };

const statusNames = new Map<number, StatusName>();
for (const [name, value] of Object.entries(Status)) {
  if (name !== "ok") statusNames.set(value, name as StatusName);
}

/** The opened library, and the scratch memory that its calls take their descriptors from. */
export class Library {
  readonly path: string;
  readonly symbols: NativeLibrary;
  readonly ring = new DescriptorRing();

  constructor(path: string, native: NativeLibrary) {
    this.path = path;
    this.symbols = native;
  }

  /** Throws the library's own message where `status` is not ok. */
  check(op: string, status: number): void {
    if (status !== Status.ok) this.#fail(op, status);
  }

  #fail(op: string, status: number): never {
    const name = statusNames.get(status) ?? "internal";
    throw new StatusError(name, op, String(this.symbols.md_last_error()) || `${op}: ${name}`);
  }
}

let loaded: Library | undefined;

/** The library of this thread, opened at the first call. */
export function loadLibrary(): Library {
  loaded ??= openLibrary(libraryPath());
  return loaded;
}

/** MAGICDEC_LIB, or where `bun run build` puts the library. */
export function libraryPath(): string {
  const named = Bun.env.MAGICDEC_LIB;
  if (named !== undefined && named !== "") return resolve(named);
  return resolve(import.meta.dir, `../../../zig-out/lib/libmagicdec.${suffix}`);
}

/**
 * Opens the library at `path`; throws LibraryError where it is missing, of another ABI, or for
 * another machine.
 */
export function openLibrary(path: string): Library {
  if (!existsSync(path)) {
    throw new LibraryError(
      `${path}: expected the library, found no file; ` +
        `${rebuild}, or set MAGICDEC_LIB to a library that is built already`,
    );
  }
  requireSameAbi(path);
  return new Library(path, openSymbols(path, symbols) as unknown as NativeLibrary);
}

function requireSameAbi(path: string): void {
  const found = openSymbols(path, identitySymbols);
  const version = found.md_abi_version();
  const hash = hashText(found.md_abi_hash_high(), found.md_abi_hash_low());
  const expected = hashText(abiHash.high, abiHash.low);
  if (version === abiVersion && hash === expected) return;
  throw new LibraryError(
    `${path}: expected ABI ${abiVersion} (hash ${expected}), ` +
      `got ABI ${version} (hash ${hash}); ${rebuild}`,
  );
}

function hashText(high: number, low: number): string {
  return `${high.toString(16).padStart(8, "0")}${low.toString(16).padStart(8, "0")}`;
}

function openSymbols<T extends Parameters<typeof dlopen>[1]>(path: string, wanted: T) {
  try {
    return dlopen(path, wanted).symbols;
  } catch (error) {
    const text = error instanceof Error ? error.message : String(error);
    const machine = libraryMachine(path);
    if (machine !== undefined && machine !== thisMachine) {
      throw new LibraryError(
        `${path}: expected a library for ${thisMachine}, got one for ${machine}; ` +
          `${rebuild} here (${text})`,
        { cause: error },
      );
    }
    throw new LibraryError(
      `${path}: expected a library that this machine can load; ${rebuild} (${text})`,
      { cause: error },
    );
  }
}

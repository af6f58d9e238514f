// Which machine a shared library was built for, read from its first bytes: a better answer than the
// dynamic linker gives.

import { closeSync, openSync, readSync } from "node:fs";

const elfMachines: Record<number, string> = { 0x3e: "x64", 0xb7: "arm64" };
const machMachines: Record<number, string> = { 0x0100_0007: "x64", 0x0100_000c: "arm64" };

/**
 * "linux-x64", "darwin-arm64", ..., or undefined where the file is no library that is known here.
 */
export function libraryMachine(path: string): string | undefined {
  const header = new DataView(new ArrayBuffer(20));
  const file = openSync(path, "r");
  try {
    if (readSync(file, header) < header.byteLength) return undefined;
  } finally {
    closeSync(file);
  }
  if (header.getUint32(0) === 0x7f454c46) {
    const machine = header.getUint16(18, true);
    return `linux-${elfMachines[machine] ?? `machine ${machine}`}`;
  }
  if (header.getUint32(0, true) === 0xfeedfacf) {
    const machine = header.getUint32(4, true);
    return `darwin-${machMachines[machine] ?? `machine ${machine}`}`;
  }
  return undefined;
}

/** The machine this process runs on, in the same words. */
export const thisMachine = `${process.platform}-${process.arch}`;

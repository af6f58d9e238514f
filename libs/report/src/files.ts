import {
  closeSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  renameSync,
  rmdirSync,
  rmSync,
  statSync,
  writeSync,
} from "node:fs";
import { basename, dirname, join } from "node:path";

/** A results folder or file that cannot be written; the message says which, why and what to do. */
export class ResultsError extends Error {
  override readonly name = "ResultsError";
}

/** Enough to hold every file of a run: what the probe writes, in bytes. */
const probeBytes = 1 << 20;

/**
 * Makes `root/<time>` and proves by writing 1 MB there that the run's files will fit, so that a
 * long run does not end in a full disk. A second run in the same second gets a suffix.
 *
 * @throws ResultsError when the folder cannot be made or written
 */
export function createResultsFolder(root: string, now: Date = new Date()): string {
  const time = now.toISOString().slice(0, 19).replaceAll(":", "-");
  try {
    mkdirSync(root, { recursive: true });
    const folder = makeFreshFolder(join(root, time));
    probeFolder(folder);
    return folder;
  } catch (error) {
    if (error instanceof ResultsError) throw error;
    throw new ResultsError(
      `results folder: expected to write below ${root}, but ${reason(error)}; ` +
        "choose another folder with --results FOLDER or make this one writable",
    );
  }
}

/** Checks that `folder` takes a file of 1 MB. @throws ResultsError */
export function probeFolder(folder: string): void {
  const probe = join(folder, ".probe");
  try {
    writeFully(probe, new Uint8Array(probeBytes));
  } catch (error) {
    rmSync(probe, { force: true });
    removeIfEmpty(folder);
    throw new ResultsError(
      `results folder: expected to write 1 MB in ${folder}, but ${reason(error)}; ` +
        "free some space or choose another folder with --results FOLDER",
    );
  }
  rmSync(probe);
}

/**
 * Writes `text` under a temporary name in the same folder and renames it, so that `path` holds
 * either the old content or the whole new one. @throws ResultsError
 */
export function writeAtomically(path: string, text: string): void {
  const temporary = join(dirname(path), `.${basename(path)}.${process.pid}.partial`);
  try {
    writeFully(temporary, new TextEncoder().encode(text));
    renameSync(temporary, path);
  } catch (error) {
    rmSync(temporary, { force: true });
    throw new ResultsError(
      `results: expected to write ${path}, but ${reason(error)}; ` +
        "free some space or choose another folder with --results FOLDER",
    );
  }
}

/** Removes the folder of a run that ended before it had anything to say. */
export function removeIfEmpty(folder: string): void {
  try {
    if (readdirSync(folder).length === 0) rmdirSync(folder);
  } catch {
    // The folder is gone already: nothing is left to remove.
  }
}

function makeFreshFolder(path: string): string {
  for (let attempt = 1; ; attempt++) {
    const candidate = attempt === 1 ? path : `${path}-${attempt}`;
    try {
      mkdirSync(candidate);
      return candidate;
    } catch (error) {
      const taken = statSync(candidate, { throwIfNoEntry: false }) !== undefined;
      if (!taken || attempt === 100) throw error;
    }
  }
}

function writeFully(path: string, bytes: Uint8Array): void {
  const file = openSync(path, "w");
  try {
    for (let offset = 0; offset < bytes.length;) offset += writeSync(file, bytes, offset);
    // Space is only promised once it is on the disk.
    fsyncSync(file);
  } finally {
    closeSync(file);
  }
}

function reason(error: unknown): string {
  const code = (error as NodeJS.ErrnoException).code;
  const known: Record<string, string> = {
    EACCES: "permission is denied",
    EPERM: "permission is denied",
    EROFS: "the file system is read-only",
    ENOSPC: "the disk is full",
    EDQUOT: "the disk quota is used up",
    EFBIG: "a file may not get that large here (ulimit -f)",
    ENOTDIR: "a part of that path is a file",
    EEXIST: "a file of that name is there",
  };
  return (code && known[code]) || (error instanceof Error ? error.message : String(error));
}

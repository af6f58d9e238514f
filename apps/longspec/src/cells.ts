import { appendFileSync, existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { SweepCell, writeAtomically } from "@magicdec/report";
import { UsageError } from "./errors.ts";

/** Finished cells of a sweep: one JSON object a line, appended as they finish. */
export const cellsFile = "cells.jsonl";

/**
 * The finished cells in `folder`. A last line that was cut off by the interruption is left out; any
 * other line that does not parse is an error.
 *
 * @throws UsageError when there is no such file or it is damaged
 */
export function readCells(folder: string): SweepCell[] {
  const path = join(folder, cellsFile);
  if (!existsSync(path)) {
    throw new UsageError(
      `--resume: expected the results folder of a sweep, got ${folder} without ${cellsFile}; ` +
        "name the folder that the interrupted sweep printed",
    );
  }
  const text = readFileSync(path, "utf8");
  const whole = text.slice(0, text.lastIndexOf("\n") + 1);
  if (whole.length < text.length) writeAtomically(path, whole);
  const lines = whole.split("\n").slice(0, -1);
  return lines.map((line, index) => {
    const parsed = SweepCell.safeParse(parseJson(line));
    if (parsed.success) return parsed.data;
    throw new UsageError(
      `--resume: expected a finished cell in line ${index + 1} of ${path}, got ` +
        `${JSON.stringify(line.slice(0, 60))}; remove that line`,
    );
  });
}

/** Appends finished cells to the folder's file. */
export function appendCells(folder: string, cells: readonly SweepCell[]): void {
  appendFileSync(
    join(folder, cellsFile),
    cells.map((cell) => `${JSON.stringify(cell)}\n`).join(""),
  );
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

import type { Mode } from "@magicdec/report";
import type { MethodChoice } from "./methods.ts";
import type { Options } from "./options.ts";

/** A group of cells that share one prefill. */
export interface CellGroup {
  batch: number;
  prefixLen: number;
  cells: PlannedCell[];
}

/** One cell that a sweep is to measure. */
export interface PlannedCell {
  key: string;
  mode: Mode;
  method: MethodChoice;
}

/** All groups of a sweep's grid, smallest first, so that an interrupted sweep covers many cells. */
export function planGrid(options: Options): CellGroup[] {
  const { batches, prefixLens } = options.grid;
  const sizes = batches.flatMap((batch) => prefixLens.map((prefixLen) => ({ batch, prefixLen })));
  return sizes
    .sort((a, b) => a.batch * a.prefixLen - b.batch * b.prefixLen)
    .map((size) => ({
      ...size,
      cells: options.modes.flatMap((mode) =>
        options.methods.map((method) => ({
          key: cellKey(options, { ...size, mode, method }),
          mode,
          method,
        })),
      ),
    }));
}

/** The same for two cells exactly when they measure the same thing the same way. */
export function cellKey(
  options: Options,
  cell: { batch: number; prefixLen: number; mode: Mode; method: MethodChoice },
): string {
  const { models, dataset, genLen, repetitions, stopAtEos, device, threads, pageSize } = options;
  const { graphs, sinks, windowSize, reselectEvery, skipPrefill } = options;
  const { temperature, topK, topP, minP, seed } = options;
  const settings = [
    [models.target ?? null, models.draft ?? null, dataset, device, threads ?? null],
    [models.random?.target ?? null, models.random?.draft ?? null, skipPrefill],
    [genLen, repetitions, stopAtEos, pageSize ?? null, graphs, sinks, windowSize, reselectEvery],
    [temperature, topK, topP, minP, seed],
    [cell.batch, cell.prefixLen, cell.mode],
    [cell.method.method, cell.method.cache, cell.method.gamma, cell.method.budget],
  ];
  return Bun.hash.xxHash64(JSON.stringify(settings)).toString(16).padStart(16, "0");
}

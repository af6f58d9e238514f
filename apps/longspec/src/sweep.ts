import { appendFileSync } from "node:fs";
import { join } from "node:path";
import {
  conclude,
  createResultsFolder,
  htmlSweep,
  methodId,
  type Mismatch,
  probeFolder,
  removeIfEmpty,
  reportVersion,
  type SweepCell,
  type SweepReport,
  terminalHeatMap,
  writeAtomically,
} from "@magicdec/report";
import { appendCells, cellsFile, readCells } from "./cells.ts";
import { exitCodes } from "./errors.ts";
import { type CellGroup, planGrid } from "./grid.ts";
import { mismatchMessage } from "./identity.ts";
import { measure } from "./measure.ts";
import type { Options } from "./options.ts";
import { Progress } from "./progress.ts";
import { machineFacts, runConfig } from "./results.ts";
import { prefillOrStop, toWork } from "./run.ts";
import { type Setup, setUp } from "./setup.ts";
import type { Terminal } from "./terminal.ts";

/** The command sweep: every cell of the grid not measured yet. Resolves with the exit code. */
export async function runSweep(
  options: Options,
  terminal: Terminal,
  signal: AbortSignal,
  prepare: typeof setUp = setUp,
): Promise<number> {
  const { resume } = options;
  const known = resume === undefined ? [] : readCells(resume);
  const folder = resume ?? createResultsFolder(options.results);
  if (resume !== undefined) probeFolder(resume);
  const progress = new Progress(terminal.progress);
  try {
    using setup = await prepare(options, progress);
    appendFileSync(join(folder, cellsFile), "");
    const sweep = new Sweep(options, setup, { folder, progress, signal }, known);
    await sweep.run();
    return finish(sweep, options, terminal);
  } finally {
    progress.end();
    removeIfEmpty(folder);
  }
}

interface Place {
  folder: string;
  progress: Progress;
  signal: AbortSignal;
}

class Sweep {
  readonly groups: readonly CellGroup[];
  readonly place: Place;
  readonly setup: Setup;
  readonly mismatches: Mismatch[] = [];
  readonly bandwidths: number[] = [];
  readonly #options: Options;
  readonly #known: Map<string, SweepCell>;

  constructor(options: Options, setup: Setup, place: Place, known: readonly SweepCell[]) {
    this.groups = planGrid(options);
    this.setup = setup;
    this.place = place;
    this.#options = options;
    this.#known = new Map(known.map((cell) => [cell.key, cell]));
  }

  /** The finished cells of this grid, in its order. */
  get cells(): SweepCell[] {
    return this.groups.flatMap((group) =>
      group.cells.flatMap(({ key }) => this.#known.get(key) ?? []),
    );
  }

  get planned(): number {
    return this.groups.reduce((total, group) => total + group.cells.length, 0);
  }

  async run(): Promise<void> {
    for (const [index, group] of this.groups.entries()) {
      const left = group.cells.filter(({ key }) => !this.#known.has(key));
      const name = `B ${group.batch} x ${group.prefixLen} (${index + 1} of ${this.groups.length})`;
      if (left.length === 0) {
        this.place.progress.note(`${name}: measured already`);
        continue;
      }
      this.place.progress.note(name);
      await this.#runGroup({ ...group, cells: left });
      if (this.place.signal.aborted) return;
    }
  }

  async #runGroup(group: CellGroup): Promise<void> {
    const { setup, place } = this;
    const { batch, prefixLen, cells } = group;
    const prompts = setup.prompts(Array.from({ length: batch }, () => prefixLen));
    const needDraft = cells.some((cell) => cell.method.method === "model");
    const prefill = await prefillOrStop(setup, prompts, needDraft, this.#options, place);
    if (prefill === undefined) return;
    for (const [mode, ofMode] of Map.groupBy(cells, (cell) => cell.mode)) {
      const methods = ofMode.map((cell) => cell.method);
      const work = { ...toWork(this.#options, setup, prompts), methods, modes: [mode] };
      const watch = place.progress.watch({ ...this.#options, signal: place.signal });
      const measured = await measure(setup.engine, work, watch);
      this.mismatches.push(...measured.mismatches);
      this.bandwidths.push(...measured.samples.map((sample) => sample.bandwidthGBs));
      const finished = ofMode.flatMap(({ key, method }) => {
        const id = methodId({ ...method, gamma: Number(method.gamma) });
        const row = measured.rows.find((one) => methodId(one) === id);
        const whole = row !== undefined && row.repetitions === this.#options.repetitions;
        return whole ? [{ key, batch, prefixLen, row }] : [];
      });
      appendCells(place.folder, finished);
      for (const cell of finished) this.#known.set(cell.key, cell);
      if (place.signal.aborted) return;
    }
  }
}

function finish(sweep: Sweep, options: Options, terminal: Terminal): number {
  const { folder } = sweep.place;
  const { setup, cells, planned, mismatches } = sweep;
  const partial = cells.length < planned;
  const { threads, device } = setup;
  const report: SweepReport = {
    version: reportVersion,
    machine: machineFacts({ device, threads }, sweep.bandwidths),
    config: runConfig(options, setup),
    cells,
    planned,
    partial,
    conclusion: conclusion(cells, mismatches, partial, options),
    resultsFolder: folder,
  };
  writeAtomically(join(folder, "sweep.json"), `${JSON.stringify(report, null, 2)}\n`);
  writeAtomically(join(folder, "report.html"), htmlSweep(report));
  if (options.json) {
    terminal.result(JSON.stringify(report));
  } else {
    terminal.text(`\n${terminalHeatMap(cells, terminal.color)}\n`);
    terminal.text(`\n${report.conclusion}\nresults: ${folder}\n`);
  }
  if (partial) terminal.progress.write(`go on with: sweep --resume ${folder} and the same flags\n`);
  for (const mismatch of mismatches) terminal.error(mismatchMessage(mismatch));
  if (mismatches.length > 0) return exitCodes.failed;
  return partial ? exitCodes.interrupted : exitCodes.ok;
}

/** The conclusion of the cell that gained most. */
function conclusion(
  cells: readonly SweepCell[],
  mismatches: readonly Mismatch[],
  partial: boolean,
  { temperature }: Options,
): string {
  const best = cells.reduce<SweepCell | undefined>(
    (known, cell) => (known && known.row.speedup >= cell.row.speedup ? known : cell),
    undefined,
  );
  if (best === undefined) return "Nothing was measured.";
  const losing = cells.filter((cell) => cell.row.speedup < 1).length;
  const { batch, prefixLen, row } = best;
  const found = { results: [row], mismatches, partial, temperature, batch, prefixLen };
  return `${conclude(found)} Speculation loses in ${losing} of ${cells.length} cells.`;
}

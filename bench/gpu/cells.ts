// `bun run bench:cells`: the batches and lengths that MagicDec was measured in, on a GPU, by the engine's own iteration
// graphs over random weights and random KV.

import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { parseArgs } from "node:util";
import type { DeviceName } from "@magicdec/engine";
import { type ModelConfig, presetConfig, presetNames } from "@magicdec/model";
import { Device, deviceOptions } from "@magicdec/tensor";
import Table from "cli-table3";
import {
  type Cell,
  type CellResult,
  type CellTimes,
  measureCell,
  standardCells,
} from "./cells_measure.ts";
import { measurePrefill, type PrefillResult } from "./prefill_measure.ts";
import { type Provenance, provenance } from "./provenance.ts";

const help = `bun run bench:cells [options]

T_T (one plain step), T_V4 and T_V8 (a verify pass of 4 and 8 tokens a sequence), T_D (a draft step that
reads 513 or 2049 tokens) and whole iterations of self-speculation with gamma 7 and budget 513, in the
cells that MagicDec was measured in. Weights and KV are random: times mean something, tokens do not. Each
method's tokens are compared with plain decoding's all the same. Last, prompts are prefilled. About 2
minutes and 90 GB on an H200.

  --cells LIST      cells as BATCHxTOKENS, separated by commas (default: the eight of MagicDec)
  --prefill CELL    prompts to prefill, or none (default: 8x16384)
  --model NAME      ${presetNames.join(", ")} (default: llama-3.1-8b)
  --device NAME     cuda, cuda:N or cpu (default: cuda)
  --iterations N    iterations of one run (default: 20)
  --repetitions N   runs of each method (default: 3)
  --out FILE        write machine, limits and raw samples there as JSON too
  --json            print that JSON instead of a table
  --help            this text
`;

export interface CellResults {
  readonly provenance: Provenance;
  readonly model: string;
  readonly readGigabytesPerSecond: number;
  readonly cells: readonly (CellResult | FailedCell)[];
  readonly prefill: PrefillResult | FailedCell | undefined;
}

export interface FailedCell extends Cell {
  readonly failed: string;
}

interface Options {
  readonly cells: readonly Cell[];
  readonly prefill: Cell | undefined;
  readonly model: string;
  readonly config: ModelConfig;
  readonly device: DeviceName;
  readonly iterations: number;
  readonly repetitions: number;
  readonly out: string | undefined;
  readonly json: boolean;
}

function parseOptions(argv: readonly string[]): Options | "help" {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      cells: { type: "string" },
      prefill: { type: "string", default: "8x16384" },
      model: { type: "string", default: "llama-3.1-8b" },
      device: { type: "string", default: "cuda" },
      iterations: { type: "string", default: "20" },
      repetitions: { type: "string", default: "3" },
      out: { type: "string" },
      json: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) return "help";
  const config = presetConfig(values.model);
  if (config === undefined) {
    throw new RangeError(
      `--model: expected one of ${presetNames.join(", ")}, got "${values.model}"`,
    );
  }
  return {
    cells: values.cells?.split(",").map((cell) => parseCell("--cells", cell)) ?? standardCells,
    prefill: values.prefill === "none" ? undefined : parseCell("--prefill", values.prefill),
    model: values.model,
    config,
    device: values.device as DeviceName,
    iterations: whole("--iterations", values.iterations, 2),
    repetitions: whole("--repetitions", values.repetitions, 1),
    out: values.out,
    json: values.json,
  };
}

function parseCell(flag: string, text: string): Cell {
  const [, batch, tokens] = /^(\d+)x(\d+)$/.exec(text.trim()) ?? [];
  if (batch === undefined) throw new RangeError(`${flag}: expected BATCHxTOKENS, got "${text}"`);
  return { batch: Number(batch), tokens: Number(tokens) };
}

function whole(flag: string, text: string, least: number): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= least && value <= 10_000) return value;
  throw new RangeError(`${flag}: expected an integer from ${least} to 10000, got "${text}"`);
}

/** Measures the cells one after the other; `onCell` gets what there is after each. */
async function measureAll(
  options: Options,
  onCell: (results: CellResults) => void,
): Promise<CellResults> {
  using device = Device.open(deviceOptions(options.device));
  const readGigabytesPerSecond = device.probe("read_bandwidth");
  const cells: (CellResult | FailedCell)[] = [];
  let prefill: PrefillResult | FailedCell | undefined;
  const results = (): CellResults => ({
    provenance: provenance(device),
    model: options.model,
    readGigabytesPerSecond,
    cells,
    prefill,
  });
  for (const cell of options.cells) {
    cells.push(await tried(cell, () => measureCell(cell, options)));
    onCell(results());
  }
  const prompts = options.prefill;
  if (prompts !== undefined) prefill = await tried(prompts, () => measurePrefill(prompts, options));
  onCell(results());
  return results();
}

/** What `measure` gives; a cell that does not fit must not cost the others their figures. */
async function tried<T>(cell: Cell, measure: () => Promise<T>): Promise<T | FailedCell> {
  const from = performance.now();
  try {
    return await measure();
  } catch (error) {
    return { ...cell, failed: error instanceof Error ? error.message : String(error) };
  } finally {
    const seconds = (performance.now() - from) / 1e3;
    console.error(`${cell.batch} x ${cell.tokens}: ${seconds.toFixed(1)} s`);
  }
}

/** MagicDec's own times of a cell, where there are any. */
function peerOf(model: string, { batch, tokens }: Cell): (Cell & CellTimes) | undefined {
  if (model !== "llama-3.1-8b") return undefined;
  const path = join(import.meta.dir, "../results/peers/magicdec-h200.json");
  const { cells } = JSON.parse(readFileSync(path, "utf8")) as { cells: (Cell & CellTimes)[] };
  return cells.find((cell) => cell.batch === batch && cell.tokens === tokens);
}

function print(results: CellResults): void {
  const { model, cells, prefill, readGigabytesPerSecond, provenance: about } = results;
  const table = new Table({
    head: [
      "B x S",
      "T_T",
      "loop",
      "of bytes",
      "T_V4",
      "T_V8",
      "/ T_T",
      "T_D 513",
      "of bytes",
    ].concat(["T_D 2049", "accept", "gap", "iteration", "MagicDec", "x at .83", "identical"]),
    colAligns: Array.from({ length: 16 }, () => "right"),
    style: { head: [], border: [] },
    chars: { mid: "", "left-mid": "", "mid-mid": "", "right-mid": "" },
  });
  const failures: string[] = [];
  for (const cell of cells) {
    const name = `${cell.batch} x ${cell.tokens}`;
    if ("failed" in cell) {
      failures.push(`${name}: ${cell.failed}`);
      continue;
    }
    const ms = (value: number) => value.toFixed(value < 1 ? 3 : 2);
    const ofBytes = (value: number, bytes: number) =>
      (value / (bytes / readGigabytesPerSecond / 1e6)).toFixed(2);
    const peer = peerOf(model, cell);
    const share =
      peer && `${(cell.msIteration / peer.msIteration).toFixed(2)} of ${peer.msIteration}`;
    table.push([
      name,
      ms(cell.msPlain),
      ms(cell.msPlainLoop),
      ofBytes(cell.msPlain, cell.bytesPlain),
      ms(cell.msVerify4),
      ms(cell.msVerify8),
      (cell.msVerify8 / cell.msPlain).toFixed(2),
      ms(cell.msDraft513),
      ofBytes(cell.msDraft513, cell.bytesDraft513),
      ms(cell.msDraft2049),
      ms(cell.msAccept),
      ms(cell.msGap),
      ms(cell.msIteration),
      share ?? "",
      cell.speedupAt83.toFixed(2),
      cell.identical ? "yes" : "NO",
    ]);
  }
  console.log(
    `${about.device.label}, ${model}, random weights; read ${readGigabytesPerSecond.toFixed(0)} GB/s`,
  );
  console.log(table.toString());
  for (const failure of failures) console.log(failure);
  console.log(`Milliseconds. of bytes: time over bytes / read bandwidth. gap: an iteration beside its phases.
x at .83: times as fast as plain decoding were 83 % of drafts accepted, by the equation.`);
  if (prefill === undefined) return;
  const rate =
    "failed" in prefill
      ? prefill.failed
      : `${prefill.teraflopsPerSecond.toFixed(0)} TFLOP/s, ${prefill.tokensPerSecond.toFixed(0)} tokens/s`;
  console.log(`prefill of ${prefill.batch} x ${prefill.tokens}: ${rate}`);
}

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2));
  if (options === "help") return void process.stdout.write(help);
  const { out, json } = options;
  const save = (partial: CellResults) => {
    if (out !== undefined) writeFileSync(out, `${JSON.stringify(partial, null, 1)}\n`);
  };
  const results = await measureAll(options, save);
  if (json) console.log(JSON.stringify(results, null, 1));
  else print(results);
  const bad = results.cells.filter((cell) => "failed" in cell || !cell.identical).length;
  const prefillFailed = results.prefill !== undefined && "failed" in results.prefill;
  if (bad > 0 || prefillFailed) {
    const what = prefillFailed ? ", the prefill failed" : "";
    throw new Error(`${bad} of ${results.cells.length} cells failed or lost a token${what}`);
  }
}

if (import.meta.main) {
  try {
    await main();
  } catch (error) {
    const message = error instanceof Error ? error.message : String(error);
    console.error(`bench:cells: ${message} (--help lists the options)`);
    process.exitCode = 1;
  }
}

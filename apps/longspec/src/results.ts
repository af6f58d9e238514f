import { join } from "node:path";
import {
  conclude,
  commandLine,
  gitState,
  hostFacts,
  htmlReport,
  type LongspecReport,
  type Machine,
  markdownReport,
  mean,
  reportVersion,
  type RunConfig,
  type RunManifest,
  writeAtomically,
} from "@magicdec/report";
import packageJson from "../package.json" with { type: "json" };
import type { Measurement } from "./measure.ts";
import type { Options } from "./options.ts";

/** What ran, as far as only the loaded engine knows it. */
export interface Ran {
  /** Backend and kernel level, e.g. "cpu v4". */
  device: string;
  threads: number;
  prefill: { ms: number; tokens: number };
  startedAt: Date;
  folder: string;
}

/** The settings of a run as they go into its report. */
export function runConfig(options: Options, threads: number): RunConfig {
  if (options.command === "plan") throw new RangeError("plan measures nothing and has no report");
  const drafts = options.methods.some((method) => method.method === "model");
  return {
    command: options.command,
    target: options.models.target ?? "embedded target",
    draft: drafts ? (options.models.draft ?? "embedded draft") : null,
    dataset: options.dataset,
    batch: options.prefixLens.length,
    prefixLens: options.prefixLens,
    genLen: options.genLen,
    maxLen: options.maxLen,
    temperature: options.temperature,
    topK: options.topK,
    topP: options.topP,
    minP: options.minP,
    seed: options.seed,
    stopAtEos: options.stopAtEos,
    repetitions: options.repetitions,
    sinks: options.sinks,
    windowSize: options.windowSize,
    reselectEvery: options.reselectEvery,
    pageSize: options.pageSize,
    graphs: options.graphs,
    device: options.device,
    threads,
  };
}

export function machineFacts(ran: Pick<Ran, "device" | "threads">, bandwidths: number[]): Machine {
  return {
    ...hostFacts(),
    threads: ran.threads,
    device: ran.device,
    bandwidthGBs: mean(bandwidths),
  };
}

/** The report and its manifest of a measurement. */
export function toManifest(options: Options, measured: Measurement, ran: Ran): RunManifest {
  const { prefill } = ran;
  const report: LongspecReport = {
    version: reportVersion,
    machine: machineFacts(
      ran,
      measured.samples.map((sample) => sample.bandwidthGBs),
    ),
    config: runConfig(options, ran.threads),
    prefill: {
      ...prefill,
      tokensPerSecond: prefill.ms > 0 ? (1000 * prefill.tokens) / prefill.ms : 0,
    },
    results: measured.rows,
    mismatches: measured.mismatches,
    partial: measured.partial,
    conclusion: conclude({
      results: measured.rows,
      mismatches: measured.mismatches,
      partial: measured.partial,
      temperature: options.temperature,
      batch: options.prefixLens.length,
      prefixLen: Math.max(...options.prefixLens),
    }),
    resultsFolder: ran.folder,
  };
  return {
    report,
    startedAt: ran.startedAt.toISOString(),
    finishedAt: new Date().toISOString(),
    commandLine: commandLine(process.argv),
    versions: { magicdec: packageJson.version, bun: Bun.version },
    git: gitState(import.meta.dir),
    seeds: measured.seeds,
    samples: measured.samples,
  };
}

/** Writes run.json, report.md and report.html; each file is whole or absent. */
export function writeRun(manifest: RunManifest): void {
  const folder = manifest.report.resultsFolder;
  writeAtomically(join(folder, "run.json"), `${JSON.stringify(manifest, null, 2)}\n`);
  writeAtomically(join(folder, "report.md"), markdownReport(manifest));
  writeAtomically(join(folder, "report.html"), htmlReport(manifest));
}

import { join } from "node:path";
import {
  conclude,
  commandLine,
  gitState,
  hostFacts,
  htmlReport,
  type IterationProfile,
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
import { assumedSpeedups } from "./metrics.ts";
import { modelNames } from "./models.ts";
import type { Options } from "./options.ts";

/** What ran, as far as only the loaded engine knows it. */
export interface Ran {
  /** What computed, e.g. "cpu v4" or "cuda:0 NVIDIA H200". */
  device: string;
  /** Of the CPU; 0 on a GPU. */
  threads: number;
  /** Tokens of a KV page. */
  pageSize: number;
  prefill: { ms: number; tokens: number };
  /** With --profile. */
  profile: IterationProfile[] | undefined;
  startedAt: Date;
  folder: string;
}

/** The settings of a run as they go into its report. */
export function runConfig(
  options: Options,
  { device, threads, pageSize }: Pick<Ran, "device" | "threads" | "pageSize">,
): RunConfig {
  if (options.command === "plan") throw new RangeError("plan measures nothing and has no report");
  return {
    command: options.command,
    ...modelNames(options),
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
    pageSize,
    graphs: options.graphs,
    // The label's first word: what "auto" came to.
    device: device.split(" ")[0] ?? device,
    threads,
    randomWeights: options.models.random !== undefined,
    prefillSkipped: options.skipPrefill,
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
  const random = options.models.random !== undefined;
  const assumed = random ? assumedSpeedups(measured.rows) : undefined;
  const report: LongspecReport = {
    version: reportVersion,
    machine: machineFacts(
      ran,
      measured.samples.map((sample) => sample.bandwidthGBs),
    ),
    config: runConfig(options, ran),
    prefill: {
      ...prefill,
      tokensPerSecond: prefill.ms > 0 ? (1000 * prefill.tokens) / prefill.ms : 0,
    },
    results: measured.rows,
    mismatches: measured.mismatches,
    ...(assumed && { assumed }),
    ...(ran.profile && { profile: ran.profile }),
    partial: measured.partial,
    conclusion: conclude({
      results: measured.rows,
      mismatches: measured.mismatches,
      partial: measured.partial,
      temperature: options.temperature,
      batch: options.prefixLens.length,
      prefixLen: Math.max(...options.prefixLens),
      assumed,
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

/** Writes run.json, report.md, report.html and, with a profile, profile.json; each file is whole or absent. */
export function writeRun(manifest: RunManifest): void {
  const { resultsFolder: folder, profile } = manifest.report;
  if (profile !== undefined) {
    writeAtomically(join(folder, "profile.json"), `${JSON.stringify(profile, null, 2)}\n`);
  }
  writeAtomically(join(folder, "run.json"), `${JSON.stringify(manifest, null, 2)}\n`);
  writeAtomically(join(folder, "report.md"), markdownReport(manifest));
  writeAtomically(join(folder, "report.html"), htmlReport(manifest));
}

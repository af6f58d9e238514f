import type { LongspecReport, Mode, ResultRow, RunManifest, Sample } from "../src/index.ts";

/** A result row with plausible figures; tests overwrite what they are about. */
export function makeRow(overrides: Partial<ResultRow> = {}): ResultRow {
  return {
    mode: "coupled",
    method: "self",
    cache: "streaming",
    gamma: 4,
    budget: 256,
    repetitions: 3,
    tokensPerSecond: 1311.4,
    tokensPerSecondDeviation: 18.2,
    msPerToken: 6.1,
    speedup: 2.46,
    speedupDeviation: 0.04,
    acceptanceLength: 3.96,
    acceptanceRate: 0.888,
    acceptanceByPosition: [0.89, 0.888, 0.886, 0.887],
    msTarget: 14.9,
    msDraft: 1.62,
    msVerify: 16.1,
    msAccept: 0.31,
    msSelect: 0,
    msOther: 0.12,
    msHost: 0.06,
    limitShare: 0.71,
    predictedSpeedup: 2.61,
    distinct4: 0.95,
    lookupAcceptance: 0.13,
    identical: true,
    ...overrides,
  };
}

export const baselineRow: Partial<ResultRow> = {
  method: "baseline",
  cache: null,
  gamma: 0,
  budget: null,
  tokensPerSecond: 533,
  speedup: 1,
  speedupDeviation: 0,
  acceptanceLength: 1,
  acceptanceRate: null,
  acceptanceByPosition: [],
  msDraft: 0,
  msVerify: 14.9,
  predictedSpeedup: null,
  identical: null,
};

/** The six methods of the default run in three modes. */
export function makeRows(): ResultRow[] {
  const modes: Mode[] = ["rejection", "coupled", "greedy"];
  return modes.flatMap((mode) => {
    const identical = mode === "rejection" ? null : true;
    return [
      makeRow({ ...baselineRow, mode }),
      makeRow({ mode, identical }),
      makeRow({
        mode,
        identical,
        cache: "snapkv",
        speedup: 2.31,
        predictedSpeedup: 2.5,
        msSelect: 0.4,
      }),
      makeRow({
        mode,
        identical,
        method: "model",
        cache: "full",
        budget: null,
        gamma: 2,
        speedup: 1.22,
        predictedSpeedup: 1.31,
        acceptanceLength: 2.08,
        acceptanceByPosition: [0.66, 0.64],
      }),
      makeRow({ mode, identical, method: "model", gamma: 2, speedup: 1.71, predictedSpeedup: 1.8 }),
      makeRow({
        mode,
        identical,
        method: "model",
        cache: "snapkv",
        gamma: 16,
        acceptanceByPosition: Array.from({ length: 16 }, () => 0.65),
        speedup: 0.81,
        predictedSpeedup: 0.9,
      }),
    ];
  });
}

export function makeReport(results: ResultRow[] = makeRows()): LongspecReport {
  return {
    version: 1,
    machine: {
      cpu: "Example CPU",
      cores: 2,
      threads: 2,
      memoryBytes: 16 * 2 ** 30,
      os: "Linux 6.1",
      arch: "x64",
      device: "cpu v4",
      bandwidthGBs: 46.2,
    },
    config: {
      command: "longspec",
      target: "embedded target",
      draft: "embedded draft",
      dataset: "moby-dick",
      batch: 8,
      prefixLens: Array.from({ length: 8 }, () => 8000),
      genLen: 96,
      maxLen: 8096,
      temperature: 0.6,
      topK: 0,
      topP: 1,
      minP: 0,
      seed: 123,
      stopAtEos: false,
      repetitions: 3,
      sinks: 16,
      windowSize: 32,
      reselectEvery: 64,
      pageSize: 64,
      graphs: true,
      device: "cpu",
      threads: 2,
    },
    prefill: { ms: 21_000, tokens: 128_000, tokensPerSecond: 6095 },
    results,
    mismatches: [],
    partial: false,
    conclusion: "It pays.",
    resultsFolder: "results/2026-01-01T00-00-00",
  };
}

export function makeManifest(report: LongspecReport = makeReport()): RunManifest {
  return {
    report,
    startedAt: "2026-01-01T00:00:00.000Z",
    finishedAt: "2026-01-01T00:01:30.000Z",
    commandLine: "bun apps/longspec/src/main.ts longspec",
    versions: { magicdec: "0.1.0", bun: "1.4.5" },
    git: { commit: "0123abc", dirty: false },
    seeds: [123, 124, 125],
    samples: [makeSample()],
  };
}

export function makeSample(overrides: Partial<Sample> = {}): Sample {
  return {
    mode: "coupled",
    id: "self+streaming g4 b256",
    repetition: 0,
    seed: 123,
    wallMs: 600,
    iterations: 25,
    newTokens: 760,
    msDraft: 160,
    msVerify: 400,
    msAccept: 8,
    msSelect: 0,
    wholeBatch: { iterations: 22, msDraft: 145, msVerify: 360 },
    msOther: 32,
    hostMs: 2,
    drafted: 700,
    accepted: 590,
    acceptedByPosition: [178, 158, 140, 114],
    triedByPosition: [200, 178, 158, 140],
    draftBytes: 3e9,
    verifyBytes: 1.4e10,
    bandwidthGBs: 46,
    distinct4: 0.95,
    lookupAcceptance: 0.13,
    identical: true,
    ...overrides,
  };
}

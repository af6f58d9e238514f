// One cell, B sequences of S tokens: every term of the equation and whole iterations, by the engine's own graphs.

import { type DeviceName, Runner, type SpeculationConfig } from "@magicdec/engine";
import type { ModelConfig } from "@magicdec/model";
import { predictedSpeedup, verifyTimeLine } from "@magicdec/speculation";
import { median } from "../src/kernels_measure.ts";

export interface Cell {
  readonly batch: number;
  readonly tokens: number;
}

/** Those that MagicDec was measured in (bench/results/peers/magicdec-h200.json). */
export const standardCells: readonly Cell[] = [
  { batch: 32, tokens: 16032 },
  { batch: 16, tokens: 32032 },
  { batch: 64, tokens: 8000 },
  { batch: 8, tokens: 64032 },
  { batch: 4, tokens: 100000 },
  { batch: 1, tokens: 16032 },
  { batch: 1, tokens: 100000 },
  { batch: 8, tokens: 4000 },
];

const gamma = 7;
const sinks = 16;
const seed = 1;
const greedy = { temperature: 0, topK: 0, topP: 1, minP: 0, seed };

const plain: SpeculationConfig = {
  method: "off",
  cache: "full",
  gamma: 0,
  budget: 513,
  sinks,
  window: 32,
  reselectEvery: 512,
  rule: "match",
};
const methods = {
  plain,
  short513: { ...plain, method: "self", cache: "streaming", gamma: 3 },
  long513: { ...plain, method: "self", cache: "streaming", gamma },
  long2049: { ...plain, method: "self", cache: "streaming", gamma, budget: 2049 },
} as const satisfies Record<string, SpeculationConfig>;

type Method = keyof typeof methods;
const methodNames = Object.keys(methods) as Method[];

/** Means over the iterations of one run, milliseconds; phases by the device's clock. */
interface Sample {
  readonly msDraft: number;
  readonly msVerify: number;
  readonly msAccept: number;
  /** Time that the host worked rather than waited. */
  readonly msHost: number;
  /** From the end of one iteration to the end of the next, as the host saw it: all of them. */
  readonly msIntervals: readonly number[];
  readonly tokensPerIteration: number;
}

export interface CellTimes {
  readonly msPlain: number;
  readonly msPlainLoop: number;
  readonly msVerify4: number;
  readonly msVerify8: number;
  readonly msDraft513: number;
  readonly msDraft2049: number;
  readonly msAccept: number;
  readonly msIteration: number;
  /** What an iteration of gamma 7 takes beside its phases. */
  readonly msGap: number;
  readonly msHost: number;
}

export interface CellResult extends Cell, CellTimes {
  readonly bytesPlain: number;
  readonly bytesDraft513: number;
  readonly bytesDraft2049: number;
  /** Whether every method returned the tokens of plain decoding, and how many were compared. */
  readonly identical: boolean;
  readonly comparedTokens: number;
  /** Times as fast as plain decoding at the acceptance rates that MagicDec's paper reports. */
  readonly speedupAt83: number;
  readonly samples: Readonly<Record<Method, readonly Sample[]>>;
}

export interface CellOptions {
  readonly device: DeviceName;
  readonly config: ModelConfig;
  readonly iterations: number;
  readonly repetitions: number;
}

export async function measureCell(cell: Cell, options: CellOptions): Promise<CellResult> {
  const { device, config, iterations, repetitions } = options;
  const { batch, tokens } = cell;
  // Room for runs in which every draft stands, and what is in flight at the end.
  const room = (iterations + 3) * (gamma + 1);
  using runner = await Runner.load({
    target: { config, seed },
    device,
    batch,
    maxTokens: tokens + room,
    maxGamma: gamma,
    budget: 513,
    prefillChunk: 512,
    gpuMemoryUtilization: 0.97,
  });
  runner.skipPrefill(
    Array.from({ length: batch }, () => tokens),
    { seed },
  );
  const run = (method: Method, count: number) => runFor(runner, methods[method], count, room);
  for (const method of methodNames) await run(method, 2);
  const samples: Record<Method, Sample[]> = {
    plain: [],
    short513: [],
    long513: [],
    long2049: [],
  };
  let reference: readonly Int32Array[] | undefined;
  let compared = 0;
  let identical = true;
  for (let i = 0; i < repetitions; i++) {
    for (const method of methodNames) {
      const { sample, tokens: found } = await run(method, iterations);
      samples[method].push(sample);
      reference ??= found;
      for (const [row, expected] of reference.entries()) {
        const ids = found[row] ?? new Int32Array();
        const count = Math.min(expected.length, ids.length);
        compared += count;
        identical &&= expected.subarray(0, count).join() === ids.subarray(0, count).join();
      }
    }
  }
  const times = summarise(samples);
  const { weightBytes, kvBytesPerToken } = runner.target;
  const bytes = (read: number) => weightBytes + batch * Math.min(tokens, read) * kvBytesPerToken;
  return {
    ...cell,
    ...times,
    bytesPlain: bytes(tokens),
    bytesDraft513: bytes(513),
    bytesDraft2049: bytes(2049),
    identical,
    comparedTokens: compared,
    speedupAt83: predictedSpeedup(gamma, 0.83, {
      msTarget: times.msPlainLoop,
      msDraft: times.msDraft513,
      msVerify: verifyTimeLine(
        { gamma: 3, ms: times.msVerify4 },
        { gamma: 7, ms: times.msVerify8 },
      ),
      msOther: times.msAccept + times.msGap,
    }),
    samples,
  };
}

/** Decodes until `count` iterations were read, with the next always in flight. */
async function runFor(runner: Runner, spec: SpeculationConfig, count: number, room: number) {
  const stop = new AbortController();
  const ends: number[] = [];
  const { tokens, stats } = await runner.decode(spec, greedy, {
    maxNewTokens: room,
    signal: stop.signal,
    onProgress: () => {
      ends.push(performance.now());
      if (ends.length === count) stop.abort();
    },
  });
  const perIteration = (total: number) => total / stats.iterations;
  const sample: Sample = {
    msDraft: perIteration(stats.msDraft),
    msVerify: perIteration(stats.msVerify),
    msAccept: perIteration(stats.msAccept),
    msHost: perIteration(stats.hostMs),
    msIntervals: ends.slice(1, count).map((end, i) => end - (ends[i] as number)),
    tokensPerIteration: perIteration(stats.newTokens),
  };
  return { sample, tokens };
}

function summarise(samples: Readonly<Record<Method, readonly Sample[]>>): CellTimes {
  const of = (method: Method, value: (sample: Sample) => number) =>
    median(samples[method].map(value));
  const interval = (method: Method) =>
    median(samples[method].flatMap(({ msIntervals }) => msIntervals));
  const mean = (values: readonly number[]) =>
    values.reduce((sum, value) => sum + value, 0) / values.length;
  return {
    msPlain: of("plain", (s) => s.msVerify),
    msPlainLoop: interval("plain"),
    msVerify4: of("short513", (s) => s.msVerify),
    msVerify8: of("long513", (s) => s.msVerify),
    msDraft513: of("long513", (s) => s.msDraft / gamma),
    msDraft2049: of("long2049", (s) => s.msDraft / gamma),
    msAccept: of("long513", (s) => s.msAccept),
    msIteration: interval("long513"),
    msGap: of("long513", (s) => mean(s.msIntervals) - s.msDraft - s.msVerify - s.msAccept),
    msHost: of("long513", (s) => s.msHost),
  };
}

import {
  type AssumedSpeedup,
  deviation,
  distinctShare,
  lookupAcceptance,
  mean,
  type Mode,
  type ResultRow,
  type Sample,
  sum,
} from "@magicdec/report";
import {
  acceptanceRateFromLength,
  bestGamma,
  predictedSpeedup,
  type StepTimes,
  verifyTimeLine,
} from "@magicdec/speculation";
import type { DecodeResult } from "./engine.ts";
import type { MethodChoice } from "./methods.ts";

/** A method whose gamma is known, as it runs. */
export type RunningMethod = MethodChoice & { gamma: number };

/** What of a sample the engine does not know. */
export interface SampleContext {
  mode: Mode;
  id: string;
  repetition: number;
  seed: number;
  bandwidthGBs: number;
  prompts: readonly Int32Array[];
  identical: boolean | null;
}

/** One decode as it goes into run.json. */
export function toSample(result: DecodeResult, context: SampleContext): Sample {
  const { prompts, ...rest } = context;
  const { stats, tokens } = result;
  return {
    ...rest,
    wallMs: stats.wallMs,
    iterations: stats.iterations,
    newTokens: stats.newTokens,
    msDraft: stats.msDraft,
    msVerify: stats.msVerify,
    msAccept: stats.msAccept,
    msSelect: stats.msSelect,
    wholeBatch: stats.wholeBatch,
    msOther: stats.msOther,
    hostMs: stats.hostMs,
    drafted: stats.drafted,
    accepted: stats.accepted,
    acceptedByPosition: [...stats.acceptedByPosition],
    triedByPosition: [...stats.triedByPosition],
    draftBytes: stats.draftBytes,
    verifyBytes: stats.verifyBytes,
    distinct4: distinctShare(tokens),
    lookupAcceptance: lookupAcceptance(prompts, tokens),
  };
}

/**
 * The row of one method in one mode: means over its repetitions, each compared with the baseline
 * sample of the same repetition. Acceptance is counted over all repetitions together.
 *
 * @param samples of this method and mode, at least one
 * @param baselines of the same mode
 * @param batch sequences decoded together
 */
export function toRow(
  method: RunningMethod,
  samples: readonly Sample[],
  baselines: readonly Sample[],
  batch: number,
): ResultRow {
  const [first] = samples;
  if (first === undefined) throw new RangeError("row: expected at least one sample, got none");
  const speeds = samples.map(tokensPerSecond);
  const speedups = samples.flatMap((sample) => {
    const reference = baselines.find((other) => other.repetition === sample.repetition);
    return reference === undefined
      ? []
      : [ratio(tokensPerSecond(sample), tokensPerSecond(reference))];
  });
  const times = phaseTimes(method, samples, baselines);
  const length = acceptanceLength(samples);
  const drafting = method.method !== "baseline";
  const rate = drafting ? acceptanceRateFromLength(method.gamma, length) : null;
  return {
    mode: first.mode,
    method: method.method,
    cache: method.cache,
    gamma: method.gamma,
    budget: method.budget,
    repetitions: samples.length,
    tokensPerSecond: mean(speeds),
    tokensPerSecondDeviation: deviation(speeds),
    msPerToken: mean(samples.map((sample) => ratio(sample.wallMs * batch, sample.newTokens))),
    speedup: mean(speedups),
    speedupDeviation: deviation(speedups),
    acceptanceLength: length,
    acceptanceRate: rate,
    acceptanceByPosition: acceptanceByPosition(samples),
    ...times,
    limitShare: mean(samples.map(limitShare)),
    predictedSpeedup:
      rate === null || times.msVerify === 0
        ? null
        : predictedSpeedup(method.gamma, rate, {
            msTarget: times.msTarget,
            msDraft: times.msDraft,
            msVerify: () => times.msVerify,
          }),
    distinct4: mean(samples.map((sample) => sample.distinct4)),
    lookupAcceptance: mean(samples.map((sample) => sample.lookupAcceptance)),
    identical: allIdentical(samples),
  };
}

/**
 * T_T of the baseline, and this method's own T_D, T_V and the rest; milliseconds. T_T, T_D and T_V are means over the iterations of the
 * whole batch: those after the first sequence has left are shorter, by as much as the draws decide.
 */
function phaseTimes(
  method: RunningMethod,
  samples: readonly Sample[],
  baselines: readonly Sample[],
) {
  const perIteration = (of: (sample: Sample) => number, from = samples) =>
    ratio(sum(from.map(of)), sum(from.map((sample) => sample.iterations)));
  const perStep = (of: (whole: Sample["wholeBatch"]) => number, from = samples) =>
    ratio(
      sum(from.map((sample) => of(sample.wholeBatch))),
      sum(from.map((sample) => sample.wholeBatch.iterations)),
    );
  return {
    msTarget: perStep((whole) => whole.msVerify, [...baselines]),
    msDraft: ratio(
      perStep((whole) => whole.msDraft),
      method.gamma,
    ),
    msVerify: perStep((whole) => whole.msVerify),
    msAccept: perIteration((sample) => sample.msAccept),
    msSelect: perIteration((sample) => sample.msSelect),
    msOther: perIteration((sample) => sample.msOther),
    msHost: perIteration((sample) => sample.hostMs),
  };
}

/** Acceptance rates that real models show, from hard text to easy. */
const assumedAlphas = [0.7, 0.8, 0.83, 0.89, 0.9, 0.95];

/** What the rows' times would give at other acceptance rates than those of this run. */
export function assumedSpeedups(rows: readonly ResultRow[]): AssumedSpeedup[] {
  return rows.flatMap((row) => {
    const { mode, method, cache, budget, gamma, msTarget, msDraft, msVerify } = row;
    if (method === "baseline" || msVerify === 0) return [];
    const msOther = row.msAccept + row.msSelect + row.msOther;
    const line = verifyTimeLine({ gamma: 0, ms: msTarget }, { gamma, ms: msVerify });
    const times: StepTimes = { msTarget, msDraft, msVerify: line, msOther };
    const byAlpha = assumedAlphas.map((alpha) => {
      const best = bestGamma(alpha, times);
      const speedup = predictedSpeedup(gamma, alpha, { ...times, msVerify: () => msVerify });
      return { alpha, speedup, bestGamma: best.gamma, bestSpeedup: best.speedup };
    });
    const msIteration = gamma * msDraft + msVerify + msOther;
    return { mode, method, cache, budget, gamma, msIteration, byAlpha };
  });
}

/** Tokens that an iteration yields for a sequence: the accepted drafts and the bonus token. */
export function acceptanceLength(samples: readonly Sample[]): number {
  const iterations = sum(samples.map((sample) => sample.triedByPosition[0] ?? 0));
  return 1 + ratio(sum(samples.map((sample) => sample.accepted)), iterations);
}

function acceptanceByPosition(samples: readonly Sample[]): number[] {
  const positions = Math.max(0, ...samples.map((sample) => sample.triedByPosition.length));
  return Array.from({ length: positions }, (_, position) =>
    ratio(
      sum(samples.map((sample) => sample.acceptedByPosition[position] ?? 0)),
      sum(samples.map((sample) => sample.triedByPosition[position] ?? 0)),
    ),
  );
}

export function tokensPerSecond(sample: Sample): number {
  return ratio(1000 * sample.newTokens, sample.wallMs);
}

/** Time that reading the bytes takes at the measured bandwidth, over the time it took. */
function limitShare(sample: Sample): number {
  const bytesPerMs = sample.bandwidthGBs * 1e6;
  return ratio(ratio(sample.draftBytes + sample.verifyBytes, bytesPerMs), sample.wallMs);
}

function allIdentical(samples: readonly Sample[]): boolean | null {
  if (samples.some((sample) => sample.identical === null)) return null;
  return samples.every((sample) => sample.identical);
}

function ratio(part: number, whole: number): number {
  return whole === 0 ? 0 : part / whole;
}

import { acceptanceRateFromLength, bestGamma, verifyTimeLine } from "@magicdec/speculation";
import type { DecodeResult, DecodeStats } from "./engine.ts";
import type { MethodChoice } from "./methods.ts";
import type { RunningMethod } from "./metrics.ts";

/** The two gammas that a tuning run measures; the verify time between and beyond is a line. */
const probedGammas = [2, 6] as const;

/**
 * The gamma that the equation finds best for this method on this machine, from two short runs; 0
 * when no gamma beats the baseline, which then leaves the method out.
 *
 * @param target a short run of the baseline: its T_T
 * @param run decodes briefly with the method given
 */
export async function tuneGamma(
  method: MethodChoice,
  target: DecodeResult,
  run: (method: RunningMethod) => Promise<DecodeResult>,
): Promise<number> {
  const [low, high] = probedGammas;
  const short = (await run({ ...method, gamma: low })).stats;
  const long = (await run({ ...method, gamma: high })).stats;
  const length = 1 + long.accepted / Math.max(1, long.triedByPosition[0] ?? 0);
  const times = {
    msTarget: perIteration(target.stats, target.stats.wallMs),
    msDraft: wholeBatchMs(long, long.wholeBatch.msDraft) / high,
    msVerify: verifyTimeLine(
      { gamma: low, ms: wholeBatchMs(short, short.wholeBatch.msVerify) },
      { gamma: high, ms: wholeBatchMs(long, long.wholeBatch.msVerify) },
    ),
    msOther: perIteration(long, long.msAccept + long.msSelect + long.msOther),
  };
  return bestGamma(acceptanceRateFromLength(high, length), times).gamma;
}

function wholeBatchMs(stats: DecodeStats, ms: number): number {
  return ms / Math.max(1, stats.wholeBatch.iterations);
}

function perIteration(stats: DecodeStats, ms: number): number {
  return ms / Math.max(1, stats.iterations);
}

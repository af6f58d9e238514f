/**
 * The equation that decides whether speculation pays (MagicDec, arXiv 2408.11049, section 3; Leviathan et al. 2211.17192 for Omega).
 *
 *     T_spec / T_T = (gamma * T_D / T_T + T_V(gamma) / T_T) / Omega(gamma, alpha)
 *
 * alpha is the probability that one drafted token is accepted, taken as independent of its position.
 */

/** Omega: expected tokens an iteration emits, the bonus token included. `gamma` >= 0 drafted tokens, `alpha` in [0, 1]. */
export function acceptanceLength(gamma: number, alpha: number): number {
  requireGamma(gamma);
  if (!(alpha >= 0 && alpha <= 1)) {
    throw new RangeError(`acceptance rate: expected a number in [0, 1], got ${alpha}`);
  }
  if (alpha === 1) return gamma + 1;
  return (1 - alpha ** (gamma + 1)) / (1 - alpha);
}

/** Inverse of {@link acceptanceLength} in alpha. `length` is clamped to [1, gamma + 1]; gamma 0 has no inverse and gives 0. */
export function acceptanceRateFromLength(gamma: number, length: number): number {
  requireGamma(gamma);
  if (gamma === 0 || length <= 1) return 0;
  if (length >= gamma + 1) return 1;
  let low = 0;
  let high = 1;
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2;
    if (acceptanceLength(gamma, middle) < length) low = middle;
    else high = middle;
  }
  return (low + high) / 2;
}

/** Times of one iteration's parts, milliseconds. */
export interface StepTimes {
  /** T_T: one autoregressive step of the target. */
  readonly msTarget: number;
  /** T_D: one draft step. */
  readonly msDraft: number;
  /** T_V(gamma): one verify pass over gamma + 1 rows a sequence. */
  readonly msVerify: (gamma: number) => number;
  /** What an iteration costs besides: accept, selection, gaps. */
  readonly msOther?: number;
}

/** T_T / T_spec for tokens accepted at rate `alpha`. */
export function predictedSpeedup(gamma: number, alpha: number, times: StepTimes): number {
  const iteration = gamma * times.msDraft + times.msVerify(gamma) + (times.msOther ?? 0);
  return (acceptanceLength(gamma, alpha) * times.msTarget) / iteration;
}

/** The gamma in 0 .. maxGamma with the best predicted speed-up; 0 means that speculation loses and should be off. */
export function bestGamma(
  alpha: number,
  times: StepTimes,
  maxGamma = 16,
): { readonly gamma: number; readonly speedup: number } {
  let best = { gamma: 0, speedup: 1 };
  for (let gamma = 1; gamma <= maxGamma; gamma++) {
    const speedup = predictedSpeedup(gamma, alpha, times);
    if (speedup > best.speedup) best = { gamma, speedup };
  }
  return best;
}

/** T_V as a straight line through two measured points, for gammas that were not measured. */
export function verifyTimeLine(
  a: { readonly gamma: number; readonly ms: number },
  b: { readonly gamma: number; readonly ms: number },
): (gamma: number) => number {
  if (a.gamma === b.gamma) return () => (a.ms + b.ms) / 2;
  const slope = Math.max(0, (b.ms - a.ms) / (b.gamma - a.gamma));
  return (gamma) => Math.max(0, a.ms + slope * (gamma - a.gamma));
}

function requireGamma(gamma: number): void {
  if (!Number.isInteger(gamma) || gamma < 0) {
    throw new RangeError(`gamma: expected an integer >= 0, got ${gamma}`);
  }
}

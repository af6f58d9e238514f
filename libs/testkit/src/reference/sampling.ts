// Plain f64 references of sampling: the noise, the filters, the draw and the acceptance rules.

type Numbers = ArrayLike<number>;

/** How one sequence samples, as in @magicdec/tensor. */
export interface Sampling {
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  seed: number;
  sequence: number;
}

export const noiseStreams = { target: 0, draft: 1, accept: 2, recovery: 3 } as const;
export type Noise = keyof typeof noiseStreams;

/** Philox4x32-10 (Salmon et al. 2011): ten rounds of two 32 x 32 -> 64 bit products. */
export function philox(
  counter: readonly [number, number, number, number],
  key: readonly [number, number],
): [number, number, number, number] {
  let [a, b, c, d] = counter.map((word) => BigInt(word >>> 0)) as [bigint, bigint, bigint, bigint];
  let [k0, k1] = key.map((word) => BigInt(word >>> 0)) as [bigint, bigint];
  const low = 0xffff_ffffn;
  for (let round = 0; round < 10; round++) {
    const p0 = a * 0xd251_1f53n;
    const p1 = c * 0xcd9e_8d57n;
    [a, b, c, d] = [(p1 >> 32n) ^ b ^ k0, p1 & low, (p0 >> 32n) ^ d ^ k1, p0 & low];
    k0 = (k0 + 0x9e37_79b9n) & low;
    k1 = (k1 + 0xbb67_ae85n) & low;
  }
  return [Number(a), Number(b), Number(c), Number(d)];
}

/**
 * Uniform noise in (0, 1) of a vocabulary entry: 16 neighbouring entries take word 0 of 16 blocks,
 * the next 16 word 1, and so on.
 */
export function uniformNoise(
  { seed, sequence }: Sampling,
  stream: Noise,
  position: number,
  entry: number,
): number {
  const block = Math.floor(entry / 64) * 16 + (entry % 16);
  const key = [seed >>> 0, Math.floor(seed / 2 ** 32)] as const;
  const words = philox([block, position, sequence, noiseStreams[stream]], key);
  return ((words[Math.floor(entry / 16) % 4] as number) + 0.5) / 2 ** 32;
}

/** The lowest index of the largest value. */
export function argmax(row: Numbers): number {
  let best = 0;
  for (let i = 1; i < row.length; i++) if ((row[i] as number) > (row[best] as number)) best = i;
  return best;
}

export interface Distribution {
  p: Float64Array;
  /**
   * How far the nearest filter was from deciding otherwise (relative): an f32 kernel may differ
   * where it is tiny.
   */
  margin: number;
}

/**
 * The distribution that is drawn from: softmax(logits / temperature), then the k largest (and what
 * ties with the last of them), the shortest head of these that holds topP of their mass, and what
 * is at least minP times the largest. Temperature 0 is the argmax.
 */
export function distribution(logits: Numbers, params: Sampling): Distribution {
  const { temperature, topK, topP, minP } = params;
  const mode = argmax(logits);
  const p = new Float64Array(logits.length);
  if (temperature === 0) {
    p[mode] = 1;
    return { p, margin: 1 };
  }
  for (let i = 0; i < p.length; i++) {
    p[i] = Math.exp(((logits[i] as number) - (logits[mode] as number)) / temperature);
  }
  const sorted = p.toSorted((a, b) => b - a);
  let margin = 1;
  let least = topK > 0 && topK < p.length ? (sorted[topK - 1] as number) : 0;
  if (topP < 1) {
    const head = sorted.filter((x) => x >= least);
    const goal = topP * head.reduce((sum, x) => sum + x, 0);
    let sum = 0;
    for (const x of head) {
      if (sum >= goal) break;
      sum += x;
      margin = Math.min(margin, Math.abs(sum / goal - 1));
      least = x;
    }
  }
  if (minP > 0) {
    for (const x of sorted) margin = Math.min(margin, Math.abs(x / minP - 1));
    least = Math.max(least, minP);
  }
  let total = 0;
  for (let i = 0; i < p.length; i++) {
    if ((p[i] as number) < least) p[i] = 0;
    total += p[i] as number;
  }
  for (let i = 0; i < p.length; i++) p[i] = (p[i] as number) / total;
  return { p, margin };
}

export interface Drawn {
  token: number;
  /** How far the winner was ahead of the second, in nats. */
  lead: number;
}

/** The winner of log(weight) + Gumbel noise, for weights of any scale. */
export function draw(weights: Numbers, params: Sampling, stream: Noise, position: number): Drawn {
  let token = 0;
  let best = Number.NEGATIVE_INFINITY;
  let second = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < weights.length; i++) {
    const weight = weights[i] as number;
    if (weight <= 0) continue;
    const exponential = -Math.log1p(-uniformNoise(params, stream, position, i));
    const score = Math.log(weight) - Math.log(exponential);
    if (score > best) {
      second = best;
      best = score;
      token = i;
    } else {
      second = Math.max(second, score);
    }
  }
  return { token, lead: best - second };
}

export interface Accepted {
  tokens: number[];
  /** How close the nearest decision was, in units of u or nats. */
  margin: number;
}

/** Keeps drafts while they equal the target's own choice, then takes that choice. */
export function acceptMatch(drafts: Numbers, target: Numbers): Accepted {
  const tokens: number[] = [];
  for (let i = 0; i < target.length; i++) {
    tokens.push(target[i] as number);
    if (i < drafts.length && drafts[i] !== target[i]) break;
  }
  return { tokens, margin: 1 };
}

/**
 * Rejection sampling: p has one row more than q and drafts; `length` is the number of tokens in the
 * cache.
 */
export function acceptRejection(
  p: readonly Numbers[],
  q: readonly Numbers[],
  drafts: readonly number[],
  params: Sampling,
  length: number,
): Accepted {
  const tokens: number[] = [];
  let margin = 1;
  for (const [j, draft] of drafts.entries()) {
    const position = length + 1 + j;
    const pRow = p[j] as Numbers;
    const qRow = q[j] as Numbers;
    const u = uniformNoise(params, "accept", position, 0);
    const [pDraft, qDraft] = [pRow[draft] as number, qRow[draft] as number];
    const ratio = qDraft > 0 ? pDraft / qDraft : 2 * pDraft;
    if (ratio < 1) margin = Math.min(margin, Math.abs(u - ratio));
    if (u < ratio) {
      tokens.push(draft);
      continue;
    }
    const residual = Float64Array.from(pRow, (x, i) => {
      // The kernel's p and q are f32: a difference of their rounding is no mass.
      const rest = x - (qRow[i] as number);
      return rest > 1e-6 * x ? rest : 0;
    });
    const drawn = draw(residual, params, "recovery", position);
    tokens.push(drawn.token);
    return { tokens, margin: Math.min(margin, drawn.lead) };
  }
  const bonus = p[drafts.length] as Numbers;
  const drawn = draw(bonus, params, "recovery", length + 1 + drafts.length);
  tokens.push(drawn.token);
  return { tokens, margin: Math.min(margin, drawn.lead) };
}

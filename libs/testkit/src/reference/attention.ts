// Plain f64 references of attention over one sequence, and of SnapKV's scoring and selection.

type Numbers = ArrayLike<number>;

/** The keys and values of one sequence, (tokens, h_kv, d) each, in order of position. */
export interface SequenceKv {
  k: Numbers;
  v: Numbers;
  kvHeads: number;
  headDim: number;
}

/** One token that a row reads, and the query that meets it. */
interface Read {
  kv: SequenceKv;
  token: number;
  q: Numbers;
}

export interface AttentionInput {
  /** (rows, h, d): the new rows of this sequence, the last of which stands at position kvLen - 1 */
  q: Numbers;
  /** (rows, h, d); q where absent */
  qSink?: Numbers | undefined;
  heads: number;
  kv: SequenceKv;
  kvLen: number;
  scale: number;
  /** A view of the first `sinks` and the last `window` tokens. */
  view?: { sinks: number; window: number } | undefined;
  /** A compact cache read before the tail [start, position]. */
  prefix?: { kv: SequenceKv; length: number; start: number } | undefined;
  /**
   * (h_kv, n) tokens of the same cache, `length` of which are read before the tail [start,
   * position].
   */
  indices?: { tokens: Numbers; n: number; length: number; start: number } | undefined;
}

/** The attention of each new row, (rows, h, d). */
export function attention(input: AttentionInput): Float64Array {
  const { q, heads, kv, kvLen } = input;
  const d = kv.headDim;
  const rows = q.length / (heads * d);
  const group = heads / kv.kvHeads;
  const out = new Float64Array(q.length);
  for (let row = 0; row < rows; row++) {
    const position = kvLen - rows + row;
    for (let head = 0; head < heads; head++) {
      const kvHead = Math.floor(head / group);
      const reads = tokensRead(input, position, kvHead);
      attendOne(reads, (row * heads + head) * d, kvHead, d, input.scale, out);
    }
  }
  return out;
}

function tokensRead(input: AttentionInput, position: number, kvHead: number): Read[] {
  const { q, kv, view, prefix, indices } = input;
  const reads: Read[] = [];
  let start = 0;
  if (view !== undefined && position + 1 > view.sinks + view.window) {
    for (let token = 0; token < view.sinks; token++) reads.push({ kv, token, q: input.qSink ?? q });
    start = position + 1 - view.window;
  }
  if (prefix !== undefined) {
    for (let token = 0; token < prefix.length; token++) reads.push({ kv: prefix.kv, token, q });
    start = prefix.start;
  }
  if (indices !== undefined) {
    for (let i = 0; i < indices.length; i++) {
      reads.push({ kv, token: indices.tokens[kvHead * indices.n + i] as number, q });
    }
    start = indices.start;
  }
  for (let token = start; token <= position; token++) reads.push({ kv, token, q });
  return reads;
}

function attendOne(
  reads: Read[],
  qAt: number,
  kvHead: number,
  d: number,
  scale: number,
  out: Float64Array,
): void {
  const scores = reads.map(({ kv, token, q }) => {
    const at = (token * kv.kvHeads + kvHead) * d;
    let sum = 0;
    for (let i = 0; i < d; i++) sum += (q[qAt + i] as number) * (kv.k[at + i] as number);
    return sum * scale;
  });
  const weights = softmax(scores);
  reads.forEach(({ kv, token }, i) => {
    const at = (token * kv.kvHeads + kvHead) * d;
    for (let j = 0; j < d; j++) {
      out[qAt + j] = (out[qAt + j] as number) + (weights[i] as number) * (kv.v[at + j] as number);
    }
  });
}

export function softmax(x: Numbers): Float64Array {
  let largest = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < x.length; i++) largest = Math.max(largest, x[i] as number);
  const out = new Float64Array(x.length);
  let sum = 0;
  for (let i = 0; i < x.length; i++) {
    out[i] = Math.exp((x[i] as number) - largest);
    sum += out[i] as number;
  }
  for (let i = 0; i < x.length; i++) out[i] = (out[i] as number) / sum;
  return out;
}

export interface SnapScoreInput {
  /** (window, h, d): the queries at positions length - window .. length - 1 */
  queries: Numbers;
  heads: number;
  kv: SequenceKv;
  length: number;
  window: number;
  scale: number;
}

/**
 * (h_kv, length - window): the probability that the window's queries give each context token,
 * summed over queries and the GQA group.
 */
export function snapScore(input: SnapScoreInput): Float64Array {
  const { queries, heads, kv, length, window, scale } = input;
  const d = kv.headDim;
  const group = heads / kv.kvHeads;
  const context = Math.max(length - window, 0);
  const out = new Float64Array(kv.kvHeads * context);
  for (let i = 0; i < window; i++) {
    const position = length - window + i;
    if (position < 0) continue;
    for (let head = 0; head < heads; head++) {
      const kvHead = Math.floor(head / group);
      const qAt = (i * heads + head) * d;
      const scores = Array.from({ length: position + 1 }, (_, token) => {
        const at = (token * kv.kvHeads + kvHead) * d;
        let sum = 0;
        for (let j = 0; j < d; j++) sum += (queries[qAt + j] as number) * (kv.k[at + j] as number);
        return sum * scale;
      });
      const weights = softmax(scores);
      for (let token = 0; token < context; token++) {
        const at = kvHead * context + token;
        out[at] = (out[at] as number) + (weights[token] as number);
      }
    }
  }
  return out;
}

/**
 * Average or maximum over a centred window of `kernel` tokens; what lies outside the scores does
 * not count.
 */
export function pool(scores: Numbers, kernel: number, pooling: "average" | "max"): Float64Array {
  const reach = Math.floor(kernel / 2);
  return Float64Array.from(scores, (_, i) => {
    const window = Array.prototype.slice.call(scores, Math.max(i - reach, 0), i + reach + 1);
    if (pooling === "max") return Math.max(...window);
    return window.reduce((sum, x) => sum + x, 0) / window.length;
  });
}

/** The `count` best scores' tokens, ascending; of equal scores the earlier token wins. */
export function selectBest(scores: Numbers, count: number): number[] {
  const order = Array.from({ length: scores.length }, (_, i) => i);
  order.sort((a, b) => (scores[b] as number) - (scores[a] as number) || a - b);
  return order.slice(0, count).sort((a, b) => a - b);
}

// Plain f64 references of the dense ops. Arrays are row-major; nothing is rounded except where a
// comment says so.

type Numbers = ArrayLike<number>;

/** out[i] = table[ids[i]]; table (v, n). */
export function embedding(table: Numbers, ids: Numbers, n: number): Float64Array {
  const out = new Float64Array(ids.length * n);
  for (let i = 0; i < ids.length; i++) {
    for (let j = 0; j < n; j++) out[i * n + j] = table[(ids[i] as number) * n + j] as number;
  }
  return out;
}

/** x * rsqrt(mean(x^2) + eps) * weight for each row of x (rows, n). */
export function rmsNorm(x: Numbers, weight: Numbers, eps: number): Float64Array {
  const n = weight.length;
  const out = new Float64Array(x.length);
  for (let row = 0; row < x.length; row += n) {
    let sum = 0;
    for (let j = 0; j < n; j++) sum += (x[row + j] as number) ** 2;
    const scale = 1 / Math.sqrt(sum / n + eps);
    for (let j = 0; j < n; j++) {
      out[row + j] = (x[row + j] as number) * scale * (weight[j] as number);
    }
  }
  return out;
}

export interface LinearInput {
  /** (rows, k) */
  x: Numbers;
  /** (n, k) */
  weight: Numbers;
  rows: number;
  n: number;
  k: number;
  /** (n) */
  bias?: Numbers | undefined;
  /** (rows, n), or (rows, n / 2) with siluMul */
  residual?: Numbers | undefined;
  siluMul?: boolean | undefined;
}

/** epilogue(x weight^T + bias) + residual. */
export function linear({ x, weight, rows, n, k, ...rest }: LinearInput): Float64Array {
  const product = new Float64Array(rows * n);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < n; j++) {
      let sum = (rest.bias?.[j] as number | undefined) ?? 0;
      for (let l = 0; l < k; l++) sum += (x[i * k + l] as number) * (weight[j * k + l] as number);
      product[i * n + j] = sum;
    }
  }
  const out = rest.siluMul ? siluMul(product, n / 2) : product;
  const { residual } = rest;
  if (residual)
    for (let i = 0; i < out.length; i++) out[i] = (out[i] as number) + (residual[i] as number);
  return out;
}

/** silu(gate) * up; each row of gateUp holds n gates, then n ups. */
export function siluMul(gateUp: Numbers, n: number): Float64Array {
  const rows = gateUp.length / (2 * n);
  const out = new Float64Array(rows * n);
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < n; j++) {
      const gate = gateUp[i * 2 * n + j] as number;
      out[i * n + j] = (gate / (1 + Math.exp(-gate))) * (gateUp[i * 2 * n + n + j] as number);
    }
  }
  return out;
}

/**
 * Rows of d / 2 cosines, then d / 2 sines, of position * invFreq, times scale. `viewTokens` as in
 * md_rope_table.
 */
export function ropeTable(
  positions: Numbers,
  invFreq: Numbers,
  scale = 1,
  viewTokens = 0,
): Float64Array {
  const half = invFreq.length;
  const out = new Float64Array(positions.length * 2 * half);
  for (let i = 0; i < positions.length; i++) {
    const at = positions[i] as number;
    const position = viewTokens > 0 ? Math.min(at, viewTokens - 1) : at;
    for (let j = 0; j < half; j++) {
      const angle = position * (invFreq[j] as number);
      out[i * 2 * half + j] = Math.cos(angle) * scale;
      out[i * 2 * half + half + j] = Math.sin(angle) * scale;
    }
  }
  return out;
}

/** Rotates heads (rows, heads, d) by the rows of a rope table: pair j is (x[j], x[j + d / 2]). */
export function rotate(x: Numbers, table: Numbers, heads: number, d: number): Float64Array {
  const half = d / 2;
  const out = new Float64Array(x.length);
  for (let at = 0, row = 0; at < x.length; row++) {
    for (let head = 0; head < heads; head++, at += d) {
      for (let j = 0; j < half; j++) {
        const cos = table[row * d + j] as number;
        const sin = table[row * d + half + j] as number;
        const a = x[at + j] as number;
        const b = x[at + half + j] as number;
        out[at + j] = a * cos - b * sin;
        out[at + half + j] = b * cos + a * sin;
      }
    }
  }
  return out;
}

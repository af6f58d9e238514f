import type { ModelConfig } from "./config.ts";

/**
 * Inverse frequencies (headDim / 2) f32 of the rotary embedding (Su et al. 2104.09864), with the checkpoint's scaling. `linear` stretches all
 * positions; `llama3` stretches long wavelengths by `factor`, keeps short ones, and blends between (Llama 3.1's published rule).
 */
export function inverseFrequencies(config: ModelConfig): Float32Array {
  const half = config.headDim / 2;
  const out = new Float32Array(half);
  for (let i = 0; i < half; i++) {
    // Rounded to f32 at each step, as the checkpoint was trained.
    const frequency = Math.fround(1 / Math.fround(config.ropeTheta ** (i / half)));
    out[i] = scaled(frequency, config.ropeScaling);
  }
  return out;
}

function scaled(frequency: number, scaling: ModelConfig["ropeScaling"]): number {
  switch (scaling.type) {
    case "default":
      return frequency;
    case "linear":
      return frequency / scaling.factor;
    case "llama3": {
      const { factor, lowFreqFactor, highFreqFactor, originalMaxPositionEmbeddings } = scaling;
      const wavelength = (2 * Math.PI) / frequency;
      const turns = originalMaxPositionEmbeddings / wavelength;
      if (turns > highFreqFactor) return frequency;
      if (turns < lowFreqFactor) return frequency / factor;
      const keep = (turns - lowFreqFactor) / (highFreqFactor - lowFreqFactor);
      return (1 - keep) * (frequency / factor) + keep * frequency;
    }
  }
}

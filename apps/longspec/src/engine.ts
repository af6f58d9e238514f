import type { DecodeResult, OpTimes, SamplingConfig, SpeculationConfig } from "@magicdec/engine";

export type {
  DecodeResult,
  DecodeStats,
  SamplingConfig,
  SpeculationConfig,
} from "@magicdec/engine";

/**
 * What a benchmark asks of the engine's Runner. It is named here so that the measuring code can be
 * tested over figures that are known beforehand.
 */
export interface BenchEngine {
  prefill(
    prompts: Int32Array[],
    options?: {
      needDraft?: boolean;
      onProgress?: (doneTokens: number, totalTokens: number) => void;
      signal?: AbortSignal;
    },
  ): Promise<{ ms: number; tokens: number }>;
  /** Instead of a prefill: caches of seeded noise for prompts of these lengths. */
  skipPrefill(lengths: readonly number[], options: { needDraft?: boolean; seed: number }): void;
  decode(
    speculation: SpeculationConfig,
    sampling: SamplingConfig,
    options: {
      maxNewTokens: number | number[];
      eosTokenIds?: number[];
      onProgress?: (newTokens: number) => void;
      signal?: AbortSignal;
    },
  ): Promise<DecodeResult>;
  /** Times of the ops of one iteration over the prefilled prompts. */
  profile(speculation: SpeculationConfig, sampling: SamplingConfig): OpTimes;
  /** The target's logits after `tokens`; replaces what was prefilled. */
  logitsAfter(tokens: Int32Array): Promise<Float32Array>;
  readonly device: { probe(kind: "read_bandwidth", megabytes?: number): number };
}

import type { DecodeResult, SamplingConfig, SpeculationConfig } from "@magicdec/engine";

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
  /** The target's logits after `tokens`; replaces what was prefilled. */
  logitsAfter(tokens: Int32Array): Promise<Float32Array>;
  readonly device: { probe(kind: "read_bandwidth", megabytes?: number): number };
}

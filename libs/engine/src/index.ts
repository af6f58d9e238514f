export type { CachePolicyName } from "@magicdec/cache";
export {
  Engine,
  type GenerateChunk,
  type GenerateRequest,
  type GenerateResult,
  Generation,
} from "./engine.ts";
export { formatBytes, type MemoryPart, type MemoryPlan, MemoryPlanError } from "./plan.ts";
export { maxGamma } from "./resident.ts";
export type { EngineInfo } from "./protocol.ts";
export { type PrefillCallOptions, Runner, standardPageSize } from "./runner.ts";
export type {
  DecodeOptions,
  DecodeResult,
  DecodeStats,
  EngineOptions,
  FinishReason,
  RunnerOptions,
  SamplingConfig,
  SequenceRequest,
  SpeculationConfig,
} from "./types.ts";

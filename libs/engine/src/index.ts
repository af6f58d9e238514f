export type { CachePolicyName } from "@magicdec/cache";
export type { ModelSource, RandomModel } from "@magicdec/model";
export type { DeviceName, OpClass, OpTimes } from "@magicdec/tensor";
export {
  Engine,
  type GenerateChunk,
  type GenerateRequest,
  type GenerateResult,
  Generation,
} from "./engine.ts";
export {
  formatBytes,
  type MemoryPart,
  type MemoryPlan,
  MemoryPlanError,
  planText,
} from "./plan.ts";
export { maxGamma } from "./resident.ts";
export type { EngineInfo } from "./protocol.ts";
export { type PrefillCallOptions, Runner } from "./runner.ts";
export { standardPageSize } from "./standards.ts";
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

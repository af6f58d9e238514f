export { ConfigError, type ModelConfig, parseConfig, type RopeScaling } from "./config.ts";
export {
  kvBytesPerToken,
  Model,
  type ModelSource,
  type OpenedModel,
  openModel,
  type RandomModel,
} from "./model.ts";
export { Noise, NoisePool } from "./noise.ts";
export { presetConfig, presetNames } from "./presets.ts";
export { inverseFrequencies } from "./rope.ts";
export type { ForwardBatch, ForwardOptions } from "./transformer.ts";
export { plannedWeightBytes } from "./weights.ts";
export { Workspace, workspaceBytes } from "./workspace.ts";

export { ConfigError, type ModelConfig, parseConfig, type RopeScaling } from "./config.ts";
export { kvBytesPerToken, Model, plannedWeightBytes, readModel } from "./model.ts";
export { inverseFrequencies } from "./rope.ts";
export type { ForwardBatch, ForwardOptions } from "./transformer.ts";
export { Workspace, workspaceBytes } from "./workspace.ts";

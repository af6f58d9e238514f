export { Checkpoint, type CheckpointTensor } from "./checkpoint.ts";
export { CheckpointError, type CheckpointProblem } from "./errors.ts";
export {
  parseSafetensors,
  readSafetensors,
  type SafetensorsDType,
  type SafetensorsFile,
  type TensorInfo,
} from "./safetensors.ts";

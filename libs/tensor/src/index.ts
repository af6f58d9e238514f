// Tensors and ops over the library: what every package above works with. Nothing above this one
// imports @magicdec/abi.

export {
  type AcceptRule,
  type Epilogue,
  LibraryError,
  type NoiseStream,
  type Pooling,
  StatusError,
  type StatusName,
} from "@magicdec/abi";
export { fromBf16, roundToBf16, toBf16 } from "./bf16.ts";
export { type Communicator, singleRank } from "./comm.ts";
export {
  type BackendName,
  type CpuLevelName,
  Device,
  type DeviceInfo,
  type DeviceName,
  type DeviceOptions,
  deviceOptions,
  liveHandles,
  type ProbeName,
} from "./device.ts";
export { type DType, elementBytes, type TypedArray } from "./dtype.ts";
export type { DeviceEvent } from "./event.ts";
export { fnv1a64, type MappedFile } from "./file.ts";
export type { Graph } from "./graph.ts";
export { allocKvCache, type KvCacheRef, type KvGeometry, kvCacheBytes } from "./kv.ts";
export * from "./ops/attention.ts";
export * from "./ops/dense.ts";
export * from "./ops/memory.ts";
export * from "./ops/sampling.ts";
export * from "./ops/snapkv.ts";
export { type OpClass, type OpTime, type OpTimes, profileOps } from "./profile.ts";
export type { Stream } from "./stream.ts";
export { type MemoryKind, Tensor } from "./tensor.ts";
export {
  allocWeight,
  type PackedWeight,
  type PackSource,
  packedWeightBytes,
  weightPack,
} from "./weight.ts";

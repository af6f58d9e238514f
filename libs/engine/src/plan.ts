import {
  cachePolicies,
  type PagedKvOptions,
  pagedKvBytes,
  type PolicyOptions,
  queryRingBytes,
} from "@magicdec/cache";
import { type ModelConfig, plannedWeightBytes, workspaceBytes } from "@magicdec/model";
import type { Device } from "@magicdec/tensor";
import { mostDecoders } from "./decoders.ts";

/** One line of the plan. */
export interface MemoryPart {
  readonly name: string;
  readonly bytes: number;
}

/** What a run will allocate on the device, made before anything is. */
export interface MemoryPlan {
  readonly parts: readonly MemoryPart[];
  readonly totalBytes: number;
  /** What the run may take. */
  readonly availableBytes: number;
  /** Where that number comes from: "what this machine has free". */
  readonly availableText: string;
}

/** The plan does not fit; nothing was allocated. */
export class MemoryPlanError extends Error {
  override readonly name = "MemoryPlanError";
  constructor(
    readonly plan: MemoryPlan,
    remedy: string,
  ) {
    super(
      `memory: expected at most ${formatBytes(plan.availableBytes)} (${plan.availableText}), got ` +
        `${planText(plan)}; ${remedy}`,
    );
  }
}

/** "14.2 GiB = weights 3.1 GiB + KV 11.1 GiB" */
export function planText({ parts, totalBytes }: MemoryPlan): string {
  const terms = parts.map((part) => `${part.name} ${formatBytes(part.bytes)}`);
  return `${formatBytes(totalBytes)} = ${terms.join(" + ")}`;
}

export interface PlannedModel {
  readonly config: ModelConfig;
  readonly kv: PagedKvOptions;
}

export interface PlanInput {
  readonly device: Device;
  /** The target, then the draft model where there is one. */
  readonly models: readonly PlannedModel[];
  readonly batch: number;
  /** Rows of the largest forward. */
  readonly maxRows: number;
  readonly maxGamma: number;
  readonly policy: PolicyOptions;
  readonly graphs: boolean;
  /** Share of a GPU's memory that may be in use, this program and others together. */
  readonly utilization: number;
}

/** Bytes that a kernel takes in a graph that is ready to launch, with its parameters; generous. */
const bytesPerGraphNode = 2048;
const opsPerLayer = 10;
/** Batch sizes of one configuration that get a graph, as a rule: sequences of a batch end close together. */
const graphsPerDecoder = 4;

/** Adds up what the runner allocates. Throws {@link MemoryPlanError} where it cannot fit. */
export function planMemory(input: PlanInput): MemoryPlan {
  const { device, models, batch, maxRows, maxGamma, policy } = input;
  const sum = (bytes: (model: PlannedModel) => number) =>
    models.reduce((total, model) => total + bytes(model), 0);
  const vocabSize = models[0]?.config.vocabSize ?? 0;
  // Of the prompts for each model, of a verify pass, and the distributions that drafts drew from.
  const logitRows = batch * (models.length + (maxGamma + 1) + maxGamma);
  const gpu = device.backend === "cuda";
  const parts: MemoryPart[] = [
    { name: "weights", bytes: sum(({ config }) => plannedWeightBytes(device, config)) },
    { name: "KV", bytes: sum(({ kv }) => pagedKvBytes(kv)) },
    {
      name: "activations",
      bytes: sum(({ config, kv }) => workspaceBytes(device, config, maxRows, kv)),
    },
    { name: "logits", bytes: 4 * vocabSize * logitRows },
    {
      name: "kept queries",
      // The running ones, and those of the prefilled state.
      bytes: 2 * sum(({ config }) => queryRingBytes({ ...config, batch, maxGamma, ...policy })),
    },
    { name: "draft caches", bytes: policyBytes(models, policy) },
  ];
  if (gpu && input.graphs) parts.push({ name: "graphs", bytes: graphBytes(models, maxGamma) });
  const totalBytes = parts.reduce((total, part) => total + part.bytes, 0);
  const plan: MemoryPlan = { parts, totalBytes, ...availableMemory(device, input.utilization) };
  if (totalBytes > plan.availableBytes) {
    const more = gpu ? ", or raise --gpu-memory-utilization" : "";
    throw new MemoryPlanError(plan, `lower --B, --prefix-len or --gen-len${more}`);
  }
  return plan;
}

/** What SnapKV drafts of the target and of the draft model keep beside the caches. */
function policyBytes(models: readonly PlannedModel[], policy: PolicyOptions): number {
  return models.reduce((sum, { kv }) => sum + cachePolicies.snapkv.bytes(policy, kv), 0);
}

function graphBytes(models: readonly PlannedModel[], maxGamma: number): number {
  const layers = Math.max(...models.map(({ config }) => config.layers));
  const nodes = (maxGamma + 1) * (layers + 1) * opsPerLayer;
  return mostDecoders * graphsPerDecoder * nodes * bytesPerGraphNode;
}

function availableMemory(
  { backend, info }: Device,
  utilization: number,
): Pick<MemoryPlan, "availableBytes" | "availableText"> {
  const { availableMemoryBytes, totalMemoryBytes } = info;
  if (backend !== "cuda") {
    return { availableBytes: availableMemoryBytes, availableText: "what this machine has free" };
  }
  const spared = (1 - utilization) * totalMemoryBytes;
  return {
    availableBytes: Math.max(0, availableMemoryBytes - spared),
    availableText:
      `the GPU has ${formatBytes(availableMemoryBytes)} free of ${formatBytes(totalMemoryBytes)}, ` +
      `and --gpu-memory-utilization ${utilization} leaves ${formatBytes(spared)} of it alone`,
  };
}

/** "523.1 MiB" */
export function formatBytes(bytes: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < units.length - 1) {
    value /= 1024;
    unit++;
  }
  return `${value.toFixed(unit === 0 ? 0 : 1)} ${units[unit]}`;
}

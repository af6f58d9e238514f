import {
  cachePolicies,
  type PagedKvOptions,
  pagedKvBytes,
  type PolicyOptions,
} from "@magicdec/cache";
import { type ModelConfig, plannedWeightBytes, workspaceBytes } from "@magicdec/model";

/** One line of the plan. */
export interface MemoryPart {
  readonly name: string;
  readonly bytes: number;
}

/** What a run will allocate on the device, made before anything is. */
export interface MemoryPlan {
  readonly parts: readonly MemoryPart[];
  readonly totalBytes: number;
  readonly availableBytes: number;
}

/** The plan does not fit; nothing was allocated. */
export class MemoryPlanError extends Error {
  override readonly name = "MemoryPlanError";
  constructor(readonly plan: MemoryPlan) {
    const parts = plan.parts.map((part) => `${part.name} ${formatBytes(part.bytes)}`).join(" + ");
    super(
      `memory: expected at most ${formatBytes(plan.availableBytes)} (what this machine has free), got ` +
        `${formatBytes(plan.totalBytes)} = ${parts}; lower --B, --prefix-len or --gen-len`,
    );
  }
}

export interface PlanInput {
  readonly target: ModelConfig;
  readonly draft: ModelConfig | undefined;
  readonly targetKv: PagedKvOptions;
  readonly draftKv: PagedKvOptions | undefined;
  readonly maxRows: number;
  readonly logitRows: number;
  readonly policy: PolicyOptions;
  readonly availableBytes: number;
}

/** Adds up what the runner allocates. Throws {@link MemoryPlanError} where it cannot fit. */
export function planMemory(input: PlanInput): MemoryPlan {
  const { target, draft, targetKv, draftKv, maxRows, logitRows } = input;
  const models = draft === undefined ? [target] : [target, draft];
  const sum = (bytes: (config: ModelConfig) => number) =>
    models.reduce((total, config) => total + bytes(config), 0);
  const draftKvBytes = draftKv === undefined ? 0 : pagedKvBytes(draftKv);
  const parts: MemoryPart[] = [
    { name: "weights", bytes: sum(plannedWeightBytes) },
    { name: "KV", bytes: pagedKvBytes(targetKv) + draftKvBytes },
    { name: "activations", bytes: sum((config) => workspaceBytes(config, maxRows)) },
    { name: "logits", bytes: 4 * target.vocabSize * logitRows },
    { name: "draft caches", bytes: cachePolicies.snapkv.bytes(input.policy, targetKv) },
  ];
  const totalBytes = parts.reduce((total, part) => total + part.bytes, 0);
  const plan: MemoryPlan = { parts, totalBytes, availableBytes: input.availableBytes };
  if (totalBytes > input.availableBytes) throw new MemoryPlanError(plan);
  return plan;
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

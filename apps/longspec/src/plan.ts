import { formatBytes, MemoryPlanError, type MemoryPlan, type Runner } from "@magicdec/engine";
import { methodLabel, sum } from "@magicdec/report";
import { bestGamma, predictedSpeedup, type StepTimes } from "@magicdec/speculation";
import { deviceLine } from "./device_line.ts";
import { exitCodes } from "./errors.ts";
import { type MethodChoice, standardAlpha } from "./methods.ts";
import type { Options } from "./options.ts";
import { loadRunner } from "./setup.ts";
import type { Terminal } from "./terminal.ts";

/** What a method is expected to gain where memory bandwidth is the only limit. */
export interface Expectation {
  method: MethodChoice["method"];
  cache: MethodChoice["cache"];
  budget: number | null;
  /** 0 with a gamma of "auto": speculation is expected to lose. */
  gamma: number;
  alpha: number;
  msTarget: number;
  msDraft: number;
  speedup: number;
}

/** Sizes of a model that decide how long a step reads. */
export interface ModelBytes {
  weightBytes: number;
  kvBytesPerToken: number;
}

/**
 * The command plan: the memory that the run would take and the speed-up that the equation gives for
 * this machine's read bandwidth. Resolves with the exit code; 1 when the memory cannot suffice.
 */
export async function runPlan(options: Options, terminal: Terminal): Promise<number> {
  try {
    using runner = await loadRunner(options);
    const bandwidthGBs = runner.device.probe("read_bandwidth");
    const expected = options.methods.map((method) =>
      expect(method, options, runner.target, draftOf(runner, method), bandwidthGBs),
    );
    if (options.json) {
      terminal.result(JSON.stringify({ memory: runner.memoryPlan, bandwidthGBs, expected }));
    } else {
      const memory = memoryText(runner.memoryPlan);
      terminal.text(
        `${deviceLine(runner.device)}\n${memory}\n${speedText(expected, bandwidthGBs)}`,
      );
    }
    return exitCodes.ok;
  } catch (error) {
    if (error instanceof MemoryPlanError && !options.json) terminal.text(memoryText(error.plan));
    throw error;
  }
}

/**
 * T_T, T_D and the speed-up of a method when reading bytes is all that takes time: T_V equals T_T,
 * since a verify pass reads what a step reads.
 */
export function expect(
  method: MethodChoice,
  options: Pick<Options, "prefixLens" | "alpha">,
  target: ModelBytes,
  draft: ModelBytes,
  bandwidthGBs: number,
): Expectation {
  const bytesPerMs = bandwidthGBs * 1e6;
  const readMs = (model: ModelBytes, budget: number) =>
    (model.weightBytes +
      model.kvBytesPerToken * sum(options.prefixLens.map((length) => Math.min(length, budget)))) /
    bytesPerMs;
  const msTarget = readMs(target, Infinity);
  const times: StepTimes = {
    msTarget,
    msDraft: readMs(draft, method.budget ?? Infinity),
    msVerify: () => msTarget,
  };
  const alpha = options.alpha ?? standardAlpha[method.method === "model" ? "model" : "self"];
  const gamma = method.gamma === "auto" ? bestGamma(alpha, times).gamma : method.gamma;
  const { cache, budget } = method;
  return {
    method: method.method,
    cache,
    budget,
    gamma,
    alpha,
    msTarget,
    msDraft: times.msDraft,
    speedup: gamma === 0 ? 1 : predictedSpeedup(gamma, alpha, times),
  };
}

function draftOf(runner: Runner, method: MethodChoice): ModelBytes {
  return method.method === "model" && runner.draft !== undefined ? runner.draft : runner.target;
}

function memoryText(plan: MemoryPlan): string {
  const lines = [
    ...plan.parts.map(({ name, bytes }) => [name, bytes] as const),
    ["all together", plan.totalBytes] as const,
    ["may be taken", plan.availableBytes] as const,
  ];
  return [
    "memory",
    ...lines.map(([name, bytes]) => `  ${name.padEnd(24)}${formatBytes(bytes).padStart(12)}`),
    `  (${plan.availableText})`,
    "",
  ].join("\n");
}

function speedText(expected: readonly Expectation[], bandwidthGBs: number): string {
  const lines = expected.map((one) => {
    const label = `${methodLabel(one)}, gamma ${one.gamma}`.padEnd(36);
    const times = `T_T ${one.msTarget.toFixed(2)} ms  T_D ${one.msDraft.toFixed(2)} ms`;
    return `  ${label}alpha ${one.alpha.toFixed(2)}  ${times}  ${one.speedup.toFixed(2)} x`;
  });
  const heading = `speed-up where reading at ${bandwidthGBs.toFixed(1)} GB/s is the only limit`;
  return [heading, ...lines, ""].join("\n");
}

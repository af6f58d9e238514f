// Which backends a test runs on: the CPU levels of this machine, and a GPU where there is one.
// MAGICDEC_TEST_BACKENDS narrows them: cpu (every level), cuda, or all. Unset, it is every CPU
// level on a machine without a GPU; on one with a GPU the best CPU level, and the GPU.

import { describe, test } from "bun:test";
import {
  type CpuLevelName,
  Device,
  type DeviceName,
  type DeviceOptions,
  StatusError,
} from "@magicdec/tensor";

export interface TestBackend {
  readonly name: string;
  readonly kind: "cpu" | "cuda";
  /** What a runner or an engine calls it. */
  readonly device: DeviceName;
  readonly level: CpuLevelName;
  /** Numbers of threads to compare results of; a GPU has one entry, without a number. */
  readonly threadCounts: readonly (number | undefined)[];
  /** A new device; on a CPU with two threads where none are asked for. */
  open(options?: Pick<DeviceOptions, "threads">): Device;
}

interface Probed {
  readonly backend: TestBackend;
  /** Why it cannot run here. */
  readonly missing: string | undefined;
}

const levels = ["baseline", "v3", "v4", "v4_bf16"] as const satisfies readonly CpuLevelName[];
const choices = ["cpu", "cuda", "all"] as const;

let probed: { cpu: readonly Probed[]; cuda: Probed | undefined } | undefined;

/**
 * Runs `body`, which registers tests, once for each backend that computes. CPU levels that this
 * machine has not are shown as skipped, with the reason.
 */
export function forEachBackend(body: (backend: TestBackend) => void): void {
  for (const { backend, missing } of probe().cpu) {
    if (missing === undefined) describe(backend.name, () => body(backend));
    else describe.skip(`${backend.name} (${missing})`, () => body(backend));
  }
  describeCuda(body);
}

/** The same for what does not depend on the CPU level: the best of them, and the GPU. */
export function forEachKind(body: (backend: TestBackend) => void): void {
  const best = working(probe().cpu).at(-1);
  if (best !== undefined) describe(best.name, () => body(best));
  describeCuda(body);
}

/** The CPU at its highest level, for what only a CPU has, or no backend has a part in. */
export function bestCpu(): TestBackend {
  const best = working(cpuLevels()).at(-1);
  if (best === undefined) throw new Error("no CPU level of the library runs on this machine");
  return best;
}

function describeCuda(body: (backend: TestBackend) => void): void {
  const { cuda } = probe();
  if (cuda === undefined) return;
  const { backend, missing } = cuda;
  if (missing === undefined) describe(backend.name, () => body(backend));
  else showOnce(missing);
}

function working(all: readonly Probed[]): TestBackend[] {
  return all.flatMap(({ backend, missing }) => (missing === undefined ? [backend] : []));
}

function probe(): NonNullable<typeof probed> {
  if (probed !== undefined) return probed;
  const asked = choice();
  const cuda = asked === "cpu" ? undefined : probeCuda();
  if (asked === "cuda" && cuda?.missing !== undefined) {
    throw new Error(`MAGICDEC_TEST_BACKENDS=cuda: expected a GPU; ${cuda.missing}`);
  }
  const hasGpu = cuda !== undefined && cuda.missing === undefined;
  const all = asked === "cuda" ? [] : cpuLevels();
  const best = all.findLast(({ missing }) => missing === undefined);
  const cpu = hasGpu && asked === undefined && best !== undefined ? [best] : all;
  probed = { cpu, cuda };
  return probed;
}

function choice(): (typeof choices)[number] | undefined {
  const text = Bun.env.MAGICDEC_TEST_BACKENDS;
  if (text === undefined || text === "") return undefined;
  const found = choices.find((name) => name === text);
  if (found !== undefined) return found;
  throw new Error(`MAGICDEC_TEST_BACKENDS: expected one of ${choices.join(", ")}, got "${text}"`);
}

function cpuLevels(): Probed[] {
  return levels.map((level) => {
    const backend: TestBackend = {
      name: `cpu ${level}`,
      kind: "cpu",
      device: "cpu",
      level,
      threadCounts: [1, 2, 3],
      open: ({ threads = 2 } = {}) => Device.open({ backend: "cpu", level, threads }),
    };
    return { backend, missing: whyMissing(() => backend.open({ threads: 1 }).close()) };
  });
}

/** Stays open for as long as the process lives: what the driver has loaded stays loaded with it. */
let gpu: Device | undefined;

function probeCuda(): Probed {
  const backend: TestBackend = {
    name: "cuda",
    kind: "cuda",
    device: "cuda",
    level: "auto",
    threadCounts: [undefined],
    open: () => Device.open({ backend: "cuda" }),
  };
  const open = () => {
    gpu ??= backend.open();
  };
  return { backend, missing: whyMissing(open) };
}

function whyMissing(open: () => void): string | undefined {
  try {
    open();
    return undefined;
  } catch (error) {
    const missing = ["unsupported", "unavailable"];
    if (error instanceof StatusError && missing.includes(error.status)) return error.message;
    throw error;
  }
}

/** One skipped test tells it, whatever the number of files and of tests that a GPU would run. */
function showOnce(missing: string): void {
  const shown = Symbol.for("magicdec.test.cuda.shown");
  const here = globalThis as { [shown]?: boolean };
  if (here[shown]) return;
  here[shown] = true;
  describe.skip(`cuda (${missing})`, () => {
    test("every test of a backend", () => {});
  });
}

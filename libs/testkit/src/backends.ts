// Which backends a test runs on: every CPU level of this machine. Levels it has not are shown as
// skipped, with the reason.

import { describe } from "bun:test";
import { type CpuLevelName, Device, type DeviceOptions, StatusError } from "@magicdec/tensor";

export interface TestBackend {
  readonly name: string;
  readonly level: CpuLevelName;
  /** A new device; two threads where none are asked for. */
  open(options?: Pick<DeviceOptions, "threads">): Device;
}

const levels = ["baseline", "v3", "v4", "v4_bf16"] as const satisfies readonly CpuLevelName[];

let probed: { backend: TestBackend; missing: string | undefined }[] | undefined;

/** The backends that compute on this machine. */
export function computingBackends(): TestBackend[] {
  return probe().flatMap(({ backend, missing }) => (missing === undefined ? [backend] : []));
}

/** Runs `body`, which registers tests, once for each backend that computes. */
export function forEachBackend(body: (backend: TestBackend) => void): void {
  for (const { backend, missing } of probe()) {
    if (missing === undefined) describe(backend.name, () => body(backend));
    else describe.skip(`${backend.name} (${missing})`, () => body(backend));
  }
}

/** The backend of the highest level, for tests of what does not depend on the level. */
export function bestBackend(): TestBackend {
  const best = computingBackends().at(-1);
  if (best === undefined) throw new Error("no CPU level of the library runs on this machine");
  return best;
}

function probe(): NonNullable<typeof probed> {
  probed ??= levels.map((level) => {
    const backend: TestBackend = {
      name: `cpu ${level}`,
      level,
      open: ({ threads = 2 } = {}) => Device.open({ backend: "cpu", level, threads }),
    };
    return { backend, missing: whyMissing(backend) };
  });
  return probed;
}

function whyMissing(backend: TestBackend): string | undefined {
  try {
    backend.open({ threads: 1 }).close();
    return undefined;
  } catch (error) {
    const missing = ["unsupported", "unavailable"];
    if (error instanceof StatusError && missing.includes(error.status)) return error.message;
    throw error;
  }
}

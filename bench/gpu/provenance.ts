// Where figures come from: what a results file says about the machine and the code.

import { resolve } from "node:path";
import type { Device } from "@magicdec/tensor";
import { commandLine, gitState, hostFacts } from "@magicdec/report";

const root = resolve(import.meta.dir, "../..");

/** Clocks and limits as nvidia-smi names them; what it does not know is left out. */
const smiFields = [
  "name",
  "driver_version",
  "clocks.sm",
  "clocks.mem",
  "clocks.max.sm",
  "clocks.max.mem",
  "power.limit",
  "power.draw",
  "temperature.gpu",
  "clocks_event_reasons.active",
];

/** One GPU's state now; null where nvidia-smi is not there. */
export function gpuState(index: number): Readonly<Record<string, string>> | null {
  const query = [`--query-gpu=${smiFields.join(",")}`, "--format=csv,noheader", `--id=${index}`];
  try {
    const { success, stdout } = Bun.spawnSync(["nvidia-smi", ...query], { stderr: "ignore" });
    if (!success) return null;
    const values = stdout.toString().trim().split(", ");
    return Object.fromEntries(smiFields.map((name, i) => [name, values[i] ?? ""]));
  } catch {
    // Some drivers come without it: the figures stand all the same.
    return null;
  }
}

/** Commit, from what was carried here (bench/gpu/run.sh), whose library it names, or from git. */
function commit(): string | null {
  if (Bun.env.MAGICDEC_COMMIT !== undefined) return Bun.env.MAGICDEC_COMMIT;
  const state = gitState(root);
  return state === null ? null : `${state.commit}${state.dirty ? " with changes" : ""}`;
}

/** Everything about a run but its figures; to be taken right after them, for the clocks. */
export function provenance(device: Device) {
  const { totalMemoryBytes, name, computeCapability, multiprocessors, l2Bytes, driverVersion } =
    device.info;
  return {
    when: new Date().toISOString(),
    command: commandLine(process.argv),
    commit: commit(),
    bun: Bun.version,
    host: hostFacts(),
    device: {
      label: device.label,
      name,
      computeCapability,
      multiprocessors,
      l2Bytes,
      driverVersion,
      totalMemoryBytes,
    },
    gpu: device.backend === "cuda" ? gpuState(device.index) : null,
  };
}

export type Provenance = ReturnType<typeof provenance>;

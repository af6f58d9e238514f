import { arch, cpus, release, totalmem, type as osType } from "node:os";
import { relative } from "node:path";
import type { RunManifest } from "./schema.ts";

/** CPU model, logical cores, memory in bytes and system of this machine. */
export function hostFacts(): {
  cpu: string;
  cores: number;
  memoryBytes: number;
  os: string;
  arch: string;
} {
  const processors = cpus();
  return {
    cpu: processors[0]?.model.trim() || "unknown CPU",
    cores: processors.length,
    memoryBytes: totalmem(),
    os: `${osType()} ${release()}`,
    arch: arch(),
  };
}

/** Commit of the checkout at `folder` and whether it has changes; null outside of one. */
export function gitState(folder: string): RunManifest["git"] {
  const commit = git(folder, ["rev-parse", "HEAD"]);
  const status = git(folder, ["status", "--porcelain"]);
  if (commit === null || status === null) return null;
  return { commit, dirty: status.length > 0 };
}

function git(folder: string, args: string[]): string | null {
  try {
    const result = Bun.spawnSync(["git", ...args], { cwd: folder, stderr: "ignore" });
    return result.success ? result.stdout.toString().trim() : null;
  } catch {
    // git is not installed: a report without a commit is still a report.
    return null;
  }
}

/** The command that runs this again, with the script's path relative to the working directory. */
export function commandLine(argv: readonly string[]): string {
  const [, script = "", ...args] = argv;
  return ["bun", relative(process.cwd(), script) || script, ...args].map(quoted).join(" ");
}

function quoted(argument: string): string {
  return /^[\w./:=,+-]+$/.test(argument) ? argument : `'${argument.replaceAll("'", `'\\''`)}'`;
}

// What the build scripts share: progress, errors for the user, child processes, and wheels from the package index.

import { renameSync, rmSync } from "node:fs";
import { join, resolve } from "node:path";

export const root = resolve(import.meta.dir, "..");

/** Something the user can act on; printed without a stack. */
export class BuildError extends Error {}

const started = performance.now();

export function say(text: string): void {
  const seconds = ((performance.now() - started) / 1000).toFixed(1).padStart(6);
  console.log(`[build ${seconds} s] ${text}`);
}

export interface RunResult {
  readonly ok: boolean;
  readonly stdout: string;
  readonly stderr: string;
}

export async function run(command: readonly string[]): Promise<RunResult> {
  try {
    const child = Bun.spawn([...command], { cwd: root, stdout: "pipe", stderr: "pipe" });
    const [stdout, stderr, code] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
      child.exited,
    ]);
    return { ok: code === 0, stdout, stderr };
  } catch (error) {
    return { ok: false, stdout: "", stderr: String(error) };
  }
}

export interface Wheels {
  /** What they hold, for messages: "zig 0.16.0". */
  readonly name: string;
  readonly packages: readonly string[];
  readonly megabytes: number;
  /** Below .tools. */
  readonly folder: string;
  /** What to run once pip works. */
  readonly command: string;
}

/** Unpacks wheels into their folder below .tools, as a whole or not at all. */
export async function fetchWheels(wheels: Wheels): Promise<void> {
  const { name, packages, folder } = wheels;
  if (!(await run(["python3", "-m", "pip", "--version"])).ok) {
    throw new BuildError(
      `expected ${name} on the PATH, or python3 with pip to fetch it; found neither. ` +
        `Install python3 and pip (Debian: apt-get install python3-pip), then run: ${wheels.command}`,
    );
  }
  say(`fetching ${name} (about ${wheels.megabytes} MB) into .tools/${folder}`);
  const whole = join(root, ".tools", folder);
  // Into a folder of its own first, so that an interrupted fetch leaves nothing half done.
  const partial = `${whole}.${process.pid}`;
  const pip = ["python3", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
  const fetched = await run([...pip, "--no-deps", "--target", partial, ...packages]);
  if (!fetched.ok) {
    rmSync(partial, { recursive: true, force: true });
    const install = `python3 -m pip install --no-deps --target .tools/${folder} ${packages.join(" ")}`;
    throw new BuildError(
      `cannot fetch ${name}:\n${fetched.stderr.trim()}\nRun: ${install} && ${wheels.command}`,
    );
  }
  rmSync(whole, { recursive: true, force: true });
  renameSync(partial, whole);
}

// Zig's own tests as part of `bun test`: the kernels at every level of this machine, the executor, the C functions.

import { expect, test } from "bun:test";
import { resolve } from "node:path";
import { cacheOptions, findZig } from "./build.ts";

const root = resolve(import.meta.dir, "..");
/** Compiling the kernels' tests for four levels takes most of this on two cores. */
const zigTestsMs = 15 * 60_000;

async function run(command: readonly string[]) {
  const child = Bun.spawn([...command], { cwd: root, stdout: "pipe", stderr: "pipe" });
  const [stdout, stderr] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ]);
  return { code: await child.exited, text: stdout + stderr };
}

test(
  "zig build test",
  async () => {
    const zig = await findZig();
    const { code, text } = await run([zig, "build", "test", ...cacheOptions]);
    if (code !== 0) throw new Error(text);
  },
  zigTestsMs,
);

test(
  "abi.gen.ts is what the manifest gives",
  async () => {
    const { code, text } = await run([process.execPath, "kernels/build.ts", "--check"]);
    expect(text).toContain("abi.gen.ts is up to date");
    expect(code).toBe(0);
  },
  zigTestsMs,
);

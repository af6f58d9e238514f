// The program around the measurements; the measurements themselves are for people.

import { expect, test } from "bun:test";
import { symbols } from "@magicdec/abi";

async function run(...args: string[]): Promise<{ code: number; out: string; err: string }> {
  const child = Bun.spawn([process.execPath, "src/kernels.ts", ...args], {
    cwd: `${import.meta.dir}/..`,
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, out, err };
}

test.each(["cpu", "cuda"])("every op has a row on %s", async (device) => {
  const { code, out } = await run("--list", "--device", device);
  expect(code).toBe(0);
  const rows = new Set(out.split("\n").map((line) => line.split(" ")[0]));
  // An op takes a context and a descriptor, as md_linear does; so do these, which are none.
  const { args } = symbols.md_linear;
  const notOps = ["context_create", "device_info", "event_create", "graph_end", "timestamp"];
  for (const [name, symbol] of Object.entries(symbols)) {
    const op = name.slice("md_".length);
    if (symbol.args.join() !== args.join() || notOps.includes(op)) continue;
    expect(rows.has(op), `a row for ${op}`).toBe(true);
  }
});

test("one row as JSON", async () => {
  const flags = ["--json", "--samples", "1", "--ms", "1", "--threads", "1"];
  const { code, out, err } = await run(...flags, "rms_norm embedded-draft rows=8");
  expect(err).toBe("");
  expect(code).toBe(0);
  const { machine, results } = JSON.parse(out);
  expect(machine.threads).toBe(1);
  expect(machine.gigabytesPerSecond).toBeGreaterThan(0);
  expect(results).toHaveLength(1);
  expect(results[0].op).toBe("rms_norm");
  expect(results[0].us).toBeGreaterThan(0);
});

test("help, and what bad flags are told", async () => {
  const help = await run("--help");
  expect(help.code).toBe(0);
  expect(help.out).toContain("--samples N");
  const bad = await run("--samples", "many");
  expect(bad.code).toBe(1);
  expect(bad.err.trim()).toBe('--samples: expected an integer from 1 to 1000, got "many"');
  const device = await run("--device", "gpu");
  expect(device.code).toBe(1);
  expect(device.err).toContain(
    'expected a device of auto, cpu, cuda, cuda:NUMBER or null, got "gpu"',
  );
  const none = await run("no such kernel");
  expect(none.code).toBe(1);
  expect(none.err).toContain('no row contains "no such kernel"; see --list');
});

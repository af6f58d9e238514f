// What the GPU benchmarks do where there is no GPU: help, messages, and the tables made of their results.

import { describe, expect, test } from "bun:test";
import { join } from "node:path";
import { type GpuResults, gpuSection, markdownTable } from "../gpu/tables.ts";
import { withSection } from "../src/readme_tables.ts";

const folder = join(import.meta.dir, "..");

async function run(script: string, ...args: string[]) {
  const command = script.endsWith(".sh") ? "bash" : process.execPath;
  const child = Bun.spawn([command, join(folder, script), ...args], {
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err] = await Promise.all([child.stdout.text(), child.stderr.text()]);
  return { code: await child.exited, out, err };
}

test.each([
  ["gpu/bundle.ts", "--limit MiB"],
  ["gpu/cells.ts", "--cells LIST"],
  ["gpu/loading.ts", "--folder PATH"],
  ["gpu/run.sh", "MAGICDEC_BUNDLE"],
  ["gpu/sanitize.sh", "racecheck"],
  ["src/readme_tables.ts", "--check"],
  ["src/threads.ts", "--prefix-len N"],
])("%s explains itself", async (script, flag) => {
  const { code, out } = await run(script, "--help");
  expect(code).toBe(0);
  expect(out).toContain(flag);
});

test.each([
  ["gpu/cells.ts", ["--cells", "32"], '--cells: expected BATCHxTOKENS, got "32"'],
  ["gpu/cells.ts", ["--model", "gpt"], "--model: expected one of llama-3.2-1b"],
  ["gpu/bundle.ts", ["--limit", "0"], "--limit: expected a number of MiB above 0"],
  ["src/threads.ts", ["--threads", "none"], "--threads: expected an integer from 1 to 1024"],
])("%s refuses %p", async (script, flags, message) => {
  const { code, err } = await run(script, ...flags);
  expect(code).toBe(1);
  expect(err).toContain(message);
});

describe("README tables", () => {
  const provenance = {
    when: "2026-01-02T03:04:05Z",
    commit: "0123456789",
    device: { name: "NVIDIA H200" },
    gpu: null,
  };
  const times = {
    msPlain: 20,
    msPlainLoop: 20.5,
    msVerify4: 20.5,
    msVerify8: 21,
    msDraft513: 4,
    msDraft2049: 5,
    msAccept: 0.05,
    msIteration: 50,
    msGap: 0.03,
    msHost: 0.02,
  };
  const cell = {
    ...times,
    batch: 16,
    tokens: 32032,
    bytesPlain: 20e-3 * 4480e9,
    bytesDraft513: 4e-3 * 4480e9,
    bytesDraft2049: 5e-3 * 4480e9,
    speedupAt83: 1.9,
  };
  const kernel = (shape: string, by: string) => ({
    op: "linear",
    shape,
    us: 110,
    bytes: 1,
    flops: 1,
    peer: { by, us: 120 },
  });
  const results = {
    kernels: {
      provenance,
      results: [
        kernel("layer m=1 8b", "cublas"),
        kernel("layer m=8 8b", "cublas"),
        kernel("layer m=16 8b", "cublaslt"),
        { op: "linear", shape: "layer m=32 8b", skipped: "why" },
      ],
    },
    cells: { provenance, cells: [cell, { batch: 64, tokens: 8000, failed: "why" }] },
    peer: { cells: [{ ...times, batch: 16, tokens: 32032, msIteration: 62.5 }] },
  } as unknown as GpuResults;

  test("hold what was measured, and leave out what was not", () => {
    const section = gpuSection(results);
    const line = (start: string) => section.split("\n").find((text) => text.startsWith(start));
    expect(section).toContain("NVIDIA H200, 2026-01-02, commit 0123456.");
    expect(line("| 16 x 32032")).toContain("50.0 / 62.5 | 0.80");
    expect(line("| 64 x 8000")).toBeUndefined();
    expect(line("| linear, the four of a layer, M = 1, 8, 16, us")).toContain(
      "110, 110, 110 | 108",
    );
    expect(section).toContain("120, 120 (cublas); 120 (cublaslt)");
    expect(section).not.toContain("M = 32, 64");
    expect(line("| T_T / bytes at 4.48 TB/s, large cells")).toContain("| 1.00 ");
    expect(line("| one iteration / MagicDec's, large cells")).toContain("| 0.80 ");
  });

  test("columns are as wide as their widest cell", () => {
    expect(markdownTable(["a", "b"], [["1", "12345"]])).toBe(
      "| a   | b     |\n| --- | ----- |\n| 1   | 12345 |",
    );
  });

  test("replace what stands between the markers", () => {
    const begin = "<!-- generated: gpu -->";
    const end = "<!-- /generated -->";
    const text = withSection(`a\n${begin}\nold\n${end}\nb\n`, "new");
    expect(text).toBe(`a\n${begin}\n\nnew\n\n${end}\nb\n`);
    expect(withSection(text, "new")).toBe(text);
    expect(() => withSection("a", "new")).toThrow("expected the lines");
  });
});

// What the build decides about CUDA kernels, and what it makes of ptxas's report.

import { afterEach, expect, test } from "bun:test";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { checkKernels, cudaWish } from "./build_cuda.ts";

const asked = process.env.MAGICDEC_CUDA;

afterEach(() => {
  if (asked === undefined) delete process.env.MAGICDEC_CUDA;
  else process.env.MAGICDEC_CUDA = asked;
});

test("MAGICDEC_CUDA decides before what the machine has", async () => {
  process.env.MAGICDEC_CUDA = "0";
  expect(await cudaWish()).toBe("none");
  process.env.MAGICDEC_CUDA = "yes";
  await expect(cudaWish()).rejects.toThrow("expected MAGICDEC_CUDA to be 0 or 1, got yes");
  if (process.platform !== "linux") return;
  process.env.MAGICDEC_CUDA = "1";
  expect(await cudaWish()).toBe("required");
});

function check(text: string): void {
  const prefix = mkdtempSync(join(tmpdir(), "magicdec-"));
  try {
    mkdirSync(join(prefix, "cuda"));
    writeFileSync(join(prefix, "cuda", "probe.txt"), text);
    checkKernels(prefix);
  } finally {
    rmSync(prefix, { recursive: true });
  }
}

function report(kernel: string, spill: number): string {
  return [
    `ptxas info    : Compiling entry function '${kernel}' for 'sm_90a'`,
    `ptxas info    : Function properties for ${kernel}`,
    `    0 bytes stack frame, ${spill} bytes spill stores, ${spill} bytes spill loads`,
    "ptxas info    : Used 255 registers, used 1 barriers, 8192 bytes smem",
    "",
  ].join("\n");
}

test("a kernel that spills is named, with its target and its bytes", () => {
  check(report("md_good", 0));
  expect(() => check(report("md_good", 0) + report("md_bad", 12))).toThrow(
    /^probe.cu: md_bad for sm_90a spills 24 bytes$/,
  );
});

test("matrix products that ptxas runs one by one are named, and an empty report is none", () => {
  const loss = "ptxas info : (C7515) Potential Performance Loss: wgmma instructions are serialized";
  expect(() => check(`${report("md_good", 0)}${loss}\n`)).toThrow("Potential Performance Loss");
  expect(() => check("")).toThrow("expected what ptxas says of kernels");
});

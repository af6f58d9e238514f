// The CUDA side of the build: whether the CUDA kernels are wanted, the compiler they need, and what it said of them.

import { chmodSync, existsSync, readdirSync, readFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { BuildError, fetchWheels, root, run, say } from "./build_tools.ts";

/** The driver must be at least as new as what compiled the kernels, and drivers in use are for 13.0. */
const release = "13.0";
const packages = [
  "nvidia-cuda-nvcc==13.0.88",
  "nvidia-cuda-crt==13.0.88",
  "nvidia-nvvm==13.0.88",
  "nvidia-cuda-runtime==13.0.96",
  "nvidia-cuda-cccl==13.0.85",
];
const fetchedFolder = join(root, ".tools", "cuda", "nvidia", "cu13");
const fetchedNvcc = join(fetchedFolder, "bin", "nvcc");
const command = "MAGICDEC_CUDA=1 bun run build";

/** Kernels off the path of a token, which may keep registers in memory. */
const maySpill: ReadonlySet<string> = new Set();

export type CudaWish =
  /** Asked for: without a compiler the build fails. */
  | "required"
  /** A GPU or a compiler is here: without the rest the build leaves the kernels out, and says why. */
  | "preferred"
  | "none";

export async function cudaWish(): Promise<CudaWish> {
  const asked = process.env.MAGICDEC_CUDA ?? "";
  if (asked !== "" && asked !== "0" && asked !== "1") {
    throw new BuildError(`expected MAGICDEC_CUDA to be 0 or 1, got ${asked}`);
  }
  if (asked === "0") return "none";
  if (process.platform !== "linux") {
    if (asked === "") return "none";
    throw new BuildError(`expected Linux for CUDA kernels, got ${process.platform}`);
  }
  if (asked === "1") return "required";
  return hasGpu() || (await installedNvcc()) !== undefined ? "preferred" : "none";
}

function hasGpu(): boolean {
  return existsSync("/dev/nvidiactl") || existsSync("/proc/driver/nvidia");
}

/** The pinned nvcc: from the PATH, from CUDA_HOME, from an earlier fetch, or fetched now. */
export async function findNvcc(): Promise<string> {
  if (Bun.which("gcc") === null) {
    throw new BuildError(
      `expected gcc on the PATH, which nvcc uses; found none. ` +
        `Install it (Debian: apt-get install gcc g++), then run: ${command}`,
    );
  }
  const installed = await installedNvcc();
  if (installed !== undefined) {
    say(`nvcc ${release} from ${installed}`);
    return installed;
  }
  if (!existsSync(fetchedNvcc)) {
    await fetchWheels({
      name: `nvcc ${release}`,
      packages,
      megabytes: 105,
      folder: "cuda",
      command,
    });
  }
  // Wheels do not carry that these are programs.
  for (const folder of [join(fetchedFolder, "bin"), join(fetchedFolder, "nvvm", "bin")]) {
    for (const file of readdirSync(folder, { withFileTypes: true })) {
      if (file.isFile()) chmodSync(join(folder, file.name), 0o755);
    }
  }
  say(`nvcc ${release} from .tools/cuda`);
  return fetchedNvcc;
}

let looked: Promise<string | undefined> | undefined;

/** An nvcc of this release that is installed here; others are named once and left alone. */
function installedNvcc(): Promise<string | undefined> {
  looked ??= lookForNvcc();
  return looked;
}

async function lookForNvcc(): Promise<string | undefined> {
  const home = process.env.CUDA_HOME ?? "";
  const candidates = [Bun.which("nvcc"), home === "" ? null : join(home, "bin", "nvcc")];
  for (const nvcc of new Set(candidates)) {
    if (nvcc === null || !existsSync(nvcc)) continue;
    const { stdout } = await run([nvcc, "--version"]);
    const found = /release (\d+\.\d+)/.exec(stdout)?.[1];
    if (found === release) return nvcc;
    say(`${nvcc} is ${found ?? "no nvcc that runs"}, not the pinned ${release}: not used`);
  }
  return undefined;
}

interface KernelReport {
  readonly file: string;
  readonly kernel: string;
  readonly target: string;
  readonly spillBytes: number;
}

/** What ptxas said of each kernel: the text that build.zig puts beside the library. */
function parseReport(file: string, text: string): KernelReport[] {
  const reports: KernelReport[] = [];
  let kernel = "";
  let target = "";
  for (const line of text.split("\n")) {
    const entry = /Compiling entry function '(\w+)' for '(\w+)'/.exec(line);
    if (entry !== null) [, kernel = "", target = ""] = entry;
    const spills = /(\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line);
    if (spills === null || kernel === "") continue;
    reports.push({ file, kernel, target, spillBytes: Number(spills[1]) + Number(spills[2]) });
    kernel = "";
  }
  return reports;
}

/** Fails where a kernel keeps registers in memory, or where ptxas had to run wgmma one by one. */
export function checkKernels(prefix: string): void {
  const folder = join(resolve(root, prefix), "cuda");
  const faults: string[] = [];
  let kernels = 0;
  for (const name of readdirSync(folder).sort()) {
    const text = readFileSync(join(folder, name), "utf8");
    const file = name.replace(/\.txt$/, ".cu");
    for (const report of parseReport(file, text)) {
      kernels++;
      if (report.spillBytes === 0 || maySpill.has(report.kernel)) continue;
      faults.push(
        `${file}: ${report.kernel} for ${report.target} spills ${report.spillBytes} bytes`,
      );
    }
    for (const line of text.split("\n")) {
      if (line.includes("Potential Performance Loss")) faults.push(`${file}: ${line.trim()}`);
    }
  }
  if (faults.length > 0) throw new BuildError(faults.join("\n"));
  if (kernels === 0) throw new BuildError(`expected what ptxas says of kernels in ${folder}`);
  say(`${kernels} kernels compiled, no spills`);
}

// `bun run build`: builds libmagicdec with the pinned Zig, fetched where it is not on the PATH; with CUDA kernels
// where MAGICDEC_CUDA=1 asks for them, or an NVIDIA GPU or the right nvcc is here (build_cuda.ts).
// `bun kernels/build.ts --check` only says whether abi.gen.ts is what the manifest gives; `--ci` checks that, the
// format, the cross-compiled targets, the oldest glibc that the library runs on, and the CUDA kernels for spills.

import { existsSync, mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { checkKernels, cudaWish, findNvcc } from "./build_cuda.ts";
import { BuildError, fetchWheels, root, run, say } from "./build_tools.ts";

const zigVersion = "0.16.0";
const libraryName = process.platform === "darwin" ? "libmagicdec.dylib" : "libmagicdec.so";
const outputFolder = join(root, "zig-out", "lib");
const library = join(outputFolder, libraryName);
/** Stands beside the library and says what it was built from. */
const stamp = join(outputFolder, "inputs.sha256");
const bindings = join(root, "libs", "abi", "src", "abi.gen.ts");
const fetchedZig = join(root, ".tools", "zig", "ziglang", "zig");
/** build.zig's: RHEL 8 and Debian 10. */
const glibcFloor = { major: 2, minor: 28 };
const crossTargets = ["aarch64-linux", "aarch64-macos"];
/** Silence longer than this looks like a hang. */
const heartbeatMs = 15_000;

async function isPinned(zig: string): Promise<boolean> {
  return (await run([zig, "version"])).stdout.trim() === zigVersion;
}

/** The pinned Zig: from the PATH, from an earlier fetch, or fetched now. */
export async function findZig(): Promise<string> {
  const onPath = Bun.which("zig");
  if (onPath !== null && (await isPinned(onPath))) {
    say(`zig ${zigVersion} from the PATH`);
    return onPath;
  }
  if (existsSync(fetchedZig) && (await isPinned(fetchedZig))) {
    say(`zig ${zigVersion} from .tools/zig`);
    return fetchedZig;
  }
  await fetchWheels({
    name: `zig ${zigVersion}`,
    packages: [`ziglang==${zigVersion}`],
    megabytes: 80,
    folder: "zig",
    command: "bun run build",
  });
  return fetchedZig;
}

/** Zig's caches stand in the repository's ignored folder: no home folder is needed. */
export const cacheOptions = [
  "--cache-dir",
  ".zig-cache",
  "--global-cache-dir",
  ".zig-cache/global",
];

/** Changes when anything that the library depends on does. */
function hashInputs(withCuda: boolean): string {
  const hash = new Bun.CryptoHasher("sha256");
  hash.update(`${zigVersion} ${process.platform} ${process.arch} cuda ${withCuda}`);
  const pattern = withCuda ? "kernels/**/*.{zig,cu,cuh}" : "kernels/**/*.zig";
  const sources = [...new Bun.Glob(pattern).scanSync({ cwd: root })].sort();
  for (const path of ["build.zig", "build.zig.zon", ...sources]) {
    hash.update(`\n${path}\n`);
    hash.update(readFileSync(join(root, path)));
  }
  return hash.digest("hex");
}

function isBuilt(inputs: string): boolean {
  return existsSync(library) && existsSync(stamp) && readFileSync(stamp, "utf8") === inputs;
}

async function generateBindings(zig: string): Promise<string> {
  const emitted = await run([zig, "run", ...cacheOptions, "kernels/abi/emit.zig"]);
  if (!emitted.ok) {
    throw new BuildError(
      `cannot generate abi.gen.ts:\n${emitted.stderr.trim()}\nRun: zig run kernels/abi/emit.zig`,
    );
  }
  return emitted.stdout;
}

/** With CUDA kernels where there is a compiler for them. */
async function compile(zig: string, nvcc: string | undefined): Promise<void> {
  const kernels = nvcc === undefined ? "" : ", the CUDA kernels";
  say(`compiling the kernels for each CPU level${kernels}, and the library (a minute or two)`);
  const options = nvcc === undefined ? [] : [`-Dnvcc=${nvcc}`];
  const heartbeat = setInterval(() => say("still compiling"), heartbeatMs);
  const built = await run([zig, "build", ...cacheOptions, ...options]).finally(() =>
    clearInterval(heartbeat),
  );
  if (!built.ok) {
    const command = [zig, "build", ...options].join(" ");
    throw new BuildError(`zig build failed:\n${built.stderr.trim()}\nRun: ${command}`);
  }
}

async function build(): Promise<void> {
  const prebuilt = process.env.MAGICDEC_LIB;
  if (prebuilt !== undefined && prebuilt !== "") {
    if (!existsSync(prebuilt)) {
      throw new BuildError(
        `expected a library at MAGICDEC_LIB=${prebuilt}, found no file. Unset it, then run: bun run build`,
      );
    }
    say(`MAGICDEC_LIB is set: using ${prebuilt}, nothing to build`);
    return;
  }
  const wish = await cudaWish();
  if (isBuilt(hashInputs(wish !== "none"))) {
    say(`${libraryName} is up to date`);
    return;
  }
  const nvcc = wish === "none" ? undefined : await nvccFor(wish);
  const zig = await findZig();
  const text = await generateBindings(zig);
  if (!existsSync(bindings) || readFileSync(bindings, "utf8") !== text) {
    writeFileSync(bindings, text);
    say("wrote libs/abi/src/abi.gen.ts");
  }
  await compile(zig, nvcc);
  mkdirSync(outputFolder, { recursive: true });
  writeFileSync(stamp, hashInputs(nvcc !== undefined));
  if (wish === "none")
    say("left out: CUDA kernels; with an NVIDIA GPU: MAGICDEC_CUDA=1 bun run build");
  say(`built zig-out/lib/${libraryName}`);
}

/** Where the kernels are only preferred, what is missing for them must not fail the build. */
async function nvccFor(wish: "required" | "preferred"): Promise<string | undefined> {
  try {
    return await findNvcc();
  } catch (error) {
    if (wish === "required" || !(error instanceof BuildError)) throw error;
    say(`left out: CUDA kernels. ${error.message}`);
    return undefined;
  }
}

/** Fails where the committed bindings are not what the manifest gives. */
async function checkBindings(): Promise<void> {
  const text = await generateBindings(await findZig());
  if (!existsSync(bindings) || readFileSync(bindings, "utf8") !== text) {
    throw new BuildError("abi.gen.ts is outdated: run bun run build");
  }
  say("abi.gen.ts is up to date");
}

async function requireOk(command: readonly string[], advice: string): Promise<void> {
  const { ok, stdout, stderr } = await run(command);
  if (!ok) throw new BuildError(`${stdout}${stderr}`.trim() + `\n${advice}`);
}

/** Throws where the library asks for a later glibc than `glibcFloor`. */
function checkGlibc(path: string): void {
  const versions = readFileSync(path, "latin1").matchAll(/GLIBC_(\d+)\.(\d+)/g);
  for (const [name, major, minor] of versions) {
    if (Number(major) * 1000 + Number(minor) <= glibcFloor.major * 1000 + glibcFloor.minor)
      continue;
    throw new BuildError(
      `expected ${path} to need glibc ${glibcFloor.major}.${glibcFloor.minor} at most, it needs ${name}`,
    );
  }
}

async function checkAll(): Promise<void> {
  const zig = await findZig();
  const sources = ["build.zig", "build.zig.zon", "kernels"];
  await requireOk([zig, "fmt", "--check", ...sources], "Run: zig fmt build.zig kernels");
  say("zig fmt is clean");
  await checkBindings();
  for (const target of ["native", ...crossTargets]) {
    const prefix = join(".zig-cache", "ci", target);
    const options = [`-Dtarget=${target}`];
    if (target === "native" && process.platform === "linux") {
      options.push(`-Dnvcc=${await findNvcc()}`);
    }
    const command = [zig, "build", ...cacheOptions, ...options, "--prefix", prefix];
    await requireOk(command, `Run: zig build ${options.join(" ")}`);
    say(`compiled for ${target}`);
    if (options.length > 1) checkKernels(prefix);
    const shared = join(root, prefix, "lib", "libmagicdec.so");
    if (existsSync(shared)) checkGlibc(shared);
  }
  say(`needs glibc ${glibcFloor.major}.${glibcFloor.minor} at most`);
}

if (import.meta.main) {
  try {
    if (process.argv.includes("--ci")) await checkAll();
    else if (process.argv.includes("--check")) await checkBindings();
    else await build();
  } catch (error) {
    if (!(error instanceof BuildError)) throw error;
    console.error(error.message);
    process.exit(1);
  }
}

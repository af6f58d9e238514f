// `bun run build`: builds libmagicdec with the pinned Zig, fetched where it is not on the PATH.
// `bun kernels/build.ts --check` only says whether abi.gen.ts is what the manifest gives; `--ci` checks that, the
// format, the cross-compiled targets and the oldest glibc that the library runs on.

import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";

const zigVersion = "0.16.0";
const root = resolve(import.meta.dir, "..");
const libraryName = process.platform === "darwin" ? "libmagicdec.dylib" : "libmagicdec.so";
const outputFolder = join(root, "zig-out", "lib");
const library = join(outputFolder, libraryName);
/** Stands beside the library and says what it was built from. */
const stamp = join(outputFolder, "inputs.sha256");
const bindings = join(root, "libs", "abi", "src", "abi.gen.ts");
const fetchedFolder = join(root, ".tools", "zig");
const fetchedZig = join(fetchedFolder, "ziglang", "zig");
/** build.zig's: RHEL 8 and Debian 10. */
const glibcFloor = { major: 2, minor: 28 };
const crossTargets = ["aarch64-linux", "aarch64-macos"];
/** Silence longer than this looks like a hang. */
const heartbeatMs = 15_000;

/** Something the user can act on; printed without a stack. */
class BuildError extends Error {}

const started = performance.now();

function say(text: string): void {
  const seconds = ((performance.now() - started) / 1000).toFixed(1).padStart(6);
  console.log(`[build ${seconds} s] ${text}`);
}

interface RunResult {
  readonly ok: boolean;
  readonly stdout: string;
  readonly stderr: string;
}

async function run(command: readonly string[]): Promise<RunResult> {
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
  await fetchZig();
  return fetchedZig;
}

async function fetchZig(): Promise<void> {
  const install = `python3 -m pip install --target .tools/zig ziglang==${zigVersion}`;
  if (!(await run(["python3", "-m", "pip", "--version"])).ok) {
    throw new BuildError(
      `expected Zig ${zigVersion} on the PATH, or python3 with pip to fetch it; found neither. ` +
        `Install python3 and pip (Debian: apt-get install python3-pip), then run: bun run build`,
    );
  }
  say(`fetching zig ${zigVersion} (about 80 MB) into .tools/zig`);
  // Into a folder of its own first, so that an interrupted fetch leaves nothing half done.
  const partial = `${fetchedFolder}.${process.pid}`;
  const options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--target", partial];
  const pip = ["python3", "-m", "pip", "install", ...options, `ziglang==${zigVersion}`];
  const fetched = await run(pip);
  if (!fetched.ok) {
    rmSync(partial, { recursive: true, force: true });
    throw new BuildError(
      `cannot fetch Zig:\n${fetched.stderr.trim()}\nRun: ${install} && bun run build`,
    );
  }
  rmSync(fetchedFolder, { recursive: true, force: true });
  renameSync(partial, fetchedFolder);
}

/** Zig's caches stand in the repository's ignored folder: no home folder is needed. */
export const cacheOptions = [
  "--cache-dir",
  ".zig-cache",
  "--global-cache-dir",
  ".zig-cache/global",
];

/** Changes when anything that the library depends on does. */
function hashInputs(): string {
  const hash = new Bun.CryptoHasher("sha256");
  hash.update(`${zigVersion} ${process.platform} ${process.arch}`);
  const sources = [...new Bun.Glob("kernels/**/*.zig").scanSync({ cwd: root })].sort();
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

async function compile(zig: string): Promise<void> {
  say("compiling the kernels for each CPU level, and the library (about a minute)");
  const heartbeat = setInterval(() => say("still compiling"), heartbeatMs);
  const built = await run([zig, "build", ...cacheOptions]).finally(() => clearInterval(heartbeat));
  if (!built.ok) {
    throw new BuildError(`zig build failed:\n${built.stderr.trim()}\nRun: ${zig} build`);
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
  const inputs = hashInputs();
  if (isBuilt(inputs)) {
    say(`${libraryName} is up to date`);
    return;
  }
  const zig = await findZig();
  const text = await generateBindings(zig);
  if (!existsSync(bindings) || readFileSync(bindings, "utf8") !== text) {
    writeFileSync(bindings, text);
    say("wrote libs/abi/src/abi.gen.ts");
  }
  await compile(zig);
  mkdirSync(outputFolder, { recursive: true });
  writeFileSync(stamp, inputs);
  say("left out: CUDA kernels (this version has the cpu and null backends)");
  say(`built zig-out/lib/${libraryName}`);
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
    const command = [zig, "build", ...cacheOptions, `-Dtarget=${target}`, "--prefix", prefix];
    await requireOk(command, `Run: zig build -Dtarget=${target}`);
    say(`compiled for ${target}`);
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

// `bun run gpu:bundle [folder]`: packs what a GPU machine without network needs beside the
// repository's own files: the built library, Bun, and the packages that tests and benchmarks import.

import { copyFileSync, existsSync, lstatSync, mkdirSync, readdirSync, realpathSync } from "node:fs";
import { readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, relative, resolve } from "node:path";
import { parseArgs } from "node:util";

const root = resolve(import.meta.dir, "../..");
const help = `bun run gpu:bundle [options] [folder]

Packs into the folder (default: .tools/gpu-bundle) what a GPU machine without network needs beside
the repository's files: bun.xz, libmagicdec.so.xz, node_modules.tar.xz, bundle.json and run.sh.
There, in the repository: bash FOLDER/run.sh bun test apps bench libs

  --limit MiB    most that the repository's files and the folder may be together (default: 64)
  --with FOLDER  another ignored folder that travels too and counts (may be repeated)
  --help         this text
`;

/** Packages that only people who change the code need. */
const developerPackages = /^(@types\/|typescript$|oxlint$|bun-types$)/;
/** Files of packages that nothing imports at run time. */
const unreadFiles = ["*.d.ts", "*.d.mts", "*.d.cts", "*.map", "*.md", "*.markdown", "LICENSE*"];
/** What stands beside a package's modules and is not one of them. */
const unreadFolders = ["docs", "test", "tests", "examples", "benchmark"];

class BundleError extends Error {}

interface Options {
  readonly folder: string;
  readonly limitMiB: number;
  readonly beside: readonly string[];
}

function parseOptions(argv: readonly string[]): Options | "help" {
  const { values, positionals } = parseArgs({
    args: [...argv],
    allowPositionals: true,
    options: {
      limit: { type: "string", default: "64" },
      with: { type: "string", multiple: true, default: [] },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) return "help";
  const limitMiB = Number(values.limit);
  if (!(limitMiB > 0)) {
    throw new BundleError(`--limit: expected a number of MiB above 0, got "${values.limit}"`);
  }
  if (positionals.length > 1) {
    throw new BundleError(`expected one folder, got ${positionals.join(" ")}`);
  }
  return {
    folder: resolve(root, positionals[0] ?? ".tools/gpu-bundle"),
    limitMiB,
    beside: values.with.map((path) => resolve(root, path)),
  };
}

async function run(command: readonly string[], input?: Uint8Array): Promise<Uint8Array> {
  const child = Bun.spawn([...command], {
    cwd: root,
    stdin: input ?? "ignore",
    stdout: "pipe",
    stderr: "pipe",
  });
  const [out, err] = await Promise.all([
    new Response(child.stdout).bytes(),
    new Response(child.stderr).text(),
  ]);
  if ((await child.exited) !== 0) throw new BundleError(`${command[0]}: ${err.trim()}`);
  return out;
}

async function text(command: readonly string[]): Promise<string> {
  return new TextDecoder().decode(await run(command)).trim();
}

/** xz where it is installed, otherwise Python's; x86 code packs 6 % better with its jumps made absolute. */
async function compress(data: Uint8Array): Promise<Uint8Array> {
  if (Bun.which("xz") !== null) {
    return run(["xz", "-c", "--x86", "--lzma2=preset=9e"], data);
  }
  if (Bun.which("python3") === null) {
    throw new BundleError("expected xz or python3 on the PATH, found neither");
  }
  const filters = `[{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME}]`;
  const program = `import lzma, sys; sys.stdout.buffer.write(lzma.compress(sys.stdin.buffer.read(), filters=${filters}))`;
  return run(["python3", "-c", program], data);
}

function sha256(data: Uint8Array): string {
  return new Bun.CryptoHasher("sha256").update(data).digest("hex");
}

interface Packed {
  readonly sha256: string;
  readonly bytes: number;
}

/** Writes `data` compressed to `name`, unless an earlier bundle holds the same. */
async function pack(folder: string, name: string, data: Uint8Array, before?: Packed) {
  const path = join(folder, name);
  const packed = { sha256: sha256(data), bytes: data.byteLength };
  if (before?.sha256 === packed.sha256 && existsSync(path)) return packed;
  console.log(`packing ${name}`);
  writeFileSync(path, await compress(data));
  return packed;
}

function workspaceFolders(): string[] {
  const { workspaces } = JSON.parse(readFileSync(join(root, "package.json"), "utf8"));
  return workspaces.packages.flatMap((pattern: string) =>
    [...new Bun.Glob(`${pattern}/package.json`).scanSync({ cwd: root })].map((path) =>
      join(root, path, ".."),
    ),
  );
}

/** The links in a node_modules folder, scoped ones by their full name. */
function linksOf(modules: string): { name: string; path: string }[] {
  if (!existsSync(modules)) return [];
  const entries = readdirSync(modules).filter((name) => !name.startsWith("."));
  return entries.flatMap((name) => {
    const path = join(modules, name);
    if (!name.startsWith("@")) return [{ name, path }];
    return readdirSync(path).map((part) => ({ name: `${name}/${part}`, path: join(path, part) }));
  });
}

/**
 * What node_modules needs at run time, as paths below the repository: the links of each workspace
 * package, and the package folders in Bun's store that these reach.
 */
function neededModules(): string[] {
  const store = join(root, "node_modules", ".bun");
  if (!existsSync(store)) {
    throw new BundleError(`expected ${store}, found no folder; run: bun install`);
  }
  const needed = new Set<string>();
  const visited = new Set<string>();
  const visit = (modules: string) => {
    for (const { name, path } of linksOf(modules)) {
      if (developerPackages.test(name)) continue;
      needed.add(relative(root, path));
      const target = realpathSync(path);
      if (!target.startsWith(`${store}/`) || visited.has(target)) continue;
      visited.add(target);
      needed.add(relative(root, target));
      // A package's own dependencies are links beside it.
      visit(join(store, relative(store, target).split("/")[0] as string, "node_modules"));
    }
  };
  for (const folder of workspaceFolders()) visit(join(folder, "node_modules"));
  return [...needed].sort();
}

/** One archive of the same bytes for the same packages. */
function archiveModules(): Promise<Uint8Array> {
  const unread = [...unreadFiles, ...unreadFolders.map((name) => `*/node_modules/*/${name}`)];
  const exclude = unread.map((pattern) => `--exclude=${pattern}`);
  const fixed = ["--sort=name", "--mtime=@0", "--owner=0", "--group=0", "--numeric-owner"];
  return run(["tar", "-c", ...fixed, ...exclude, ...neededModules()]);
}

/** Without its debug information where `strip` is there: the machine runs it and nothing more. */
async function readLibrary(): Promise<Uint8Array> {
  const library = join(root, "zig-out", "lib", "libmagicdec.so");
  if (!existsSync(library)) {
    throw new BundleError(`expected ${library}, found no file; run: MAGICDEC_CUDA=1 bun run build`);
  }
  if (Bun.which("strip") === null) return readFileSync(library);
  const stripped = join(root, ".tools", `libmagicdec.${process.pid}.so`);
  mkdirSync(join(root, ".tools"), { recursive: true });
  await run(["strip", "--strip-unneeded", "-o", stripped, library]);
  const data = readFileSync(stripped);
  rmSync(stripped);
  return data;
}

function folderBytes(path: string): number {
  const facts = lstatSync(path, { throwIfNoEntry: false });
  if (facts === undefined)
    throw new BundleError(`--with: expected a folder at ${path}, found none`);
  if (!facts.isDirectory()) return facts.size;
  return readdirSync(path).reduce((sum, name) => sum + folderBytes(join(path, name)), 0);
}

/** Files that git tracks or would: what a copy of the working tree holds. */
async function repositoryBytes(): Promise<number> {
  const listed = await text(["git", "ls-files", "-z", "-co", "--exclude-standard"]);
  const paths = [...new Set(listed.split("\0"))].filter((path) => path !== "");
  return paths.reduce(
    (sum, path) => sum + (lstatSync(join(root, path), { throwIfNoEntry: false })?.size ?? 0),
    0,
  );
}

const mib = (bytes: number) => (bytes / 2 ** 20).toFixed(2).padStart(6);

async function checkSize({ folder, limitMiB, beside }: Options): Promise<void> {
  const parts = [{ name: "the repository's files", bytes: await repositoryBytes() }];
  for (const path of [folder, ...beside]) {
    parts.push({ name: relative(root, path) || path, bytes: folderBytes(path) });
  }
  for (const name of readdirSync(folder)) {
    console.log(`${mib(folderBytes(join(folder, name)))} MiB  ${name}`);
  }
  const total = parts.reduce((sum, { bytes }) => sum + bytes, 0);
  const sum = parts.map(({ name, bytes }) => `${mib(bytes).trim()} (${name})`).join(" + ");
  const line = `${sum} = ${mib(total).trim()} MiB of ${limitMiB}`;
  if (total > limitMiB * 2 ** 20) throw new BundleError(`too large to travel: ${line}`);
  console.log(line);
}

async function bundle(options: Options): Promise<void> {
  if (process.platform !== "linux" || process.arch !== "x64") {
    throw new BundleError(`expected to run on linux x64, got ${process.platform} ${process.arch}`);
  }
  const { folder } = options;
  mkdirSync(folder, { recursive: true });
  const description = join(folder, "bundle.json");
  const before = existsSync(description) ? JSON.parse(readFileSync(description, "utf8")) : {};
  const contents = {
    "bun.xz": await pack(folder, "bun.xz", readFileSync(process.execPath), before["bun.xz"]),
    "libmagicdec.so.xz": await pack(
      folder,
      "libmagicdec.so.xz",
      await readLibrary(),
      before["libmagicdec.so.xz"],
    ),
    "node_modules.tar.xz": await pack(
      folder,
      "node_modules.tar.xz",
      await archiveModules(),
      before["node_modules.tar.xz"],
    ),
    bun: Bun.version,
    commit: await text(["git", "rev-parse", "HEAD"]),
    dirty: (await text(["git", "status", "--porcelain"])) !== "",
  };
  writeFileSync(description, `${JSON.stringify(contents, null, 1)}\n`);
  copyFileSync(join(import.meta.dir, "run.sh"), join(folder, "run.sh"));
  await checkSize(options);
}

try {
  const options = parseOptions(process.argv.slice(2));
  if (options === "help") process.stdout.write(help);
  else await bundle(options);
} catch (error) {
  if (!(error instanceof Error)) throw error;
  console.error(`gpu:bundle: ${error.message} (--help lists the options)`);
  process.exitCode = 1;
}

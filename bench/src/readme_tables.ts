// `bun bench/src/readme_tables.ts --write` puts the GPU tables into README.md from the results that are committed; `--check`
// fails where README.md does not say what the results do.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { parseArgs } from "node:util";
import { gpuSection } from "../gpu/tables.ts";

const root = resolve(import.meta.dir, "../..");
const results = join(root, "bench/results");
const machine = "h200";
const begin = "<!-- generated: gpu -->";
const end = "<!-- /generated -->";

const help = `bun bench/src/readme_tables.ts [--write | --check]

Makes README.md's GPU tables, between ${begin} and ${end}, from
bench/results/${machine}/kernels.json, cells.json and loading.json, and MagicDec's figures in bench/results/peers.
Prints them where neither is asked for.

  --write   put them into README.md
  --check   fail where README.md has others
  --help    this text
`;

function read<T>(path: string): T | undefined {
  const full = join(results, path);
  return existsSync(full) ? (JSON.parse(readFileSync(full, "utf8")) as T) : undefined;
}

/** The text between the markers; undefined where there are no results. */
function section(): string | undefined {
  type Input = Parameters<typeof gpuSection>[0];
  const kernels = read<Input["kernels"]>(`${machine}/kernels.json`);
  const cells = read<Input["cells"]>(`${machine}/cells.json`);
  if (kernels === undefined && cells === undefined) return undefined;
  const loading = read<Input["loading"]>(`${machine}/loading.json`);
  const peer = read<Input["peer"]>("peers/magicdec-h200.json") ?? { cells: [] };
  return gpuSection({ kernels, cells, loading, peer });
}

/** `text` with what stands between the markers replaced. */
export function withSection(text: string, made: string): string {
  const from = text.indexOf(begin);
  const to = text.indexOf(end, from);
  if (from < 0 || to < 0) {
    throw new Error(`README.md: expected the lines ${begin} and ${end}, found none`);
  }
  return `${text.slice(0, from + begin.length)}\n\n${made}\n\n${text.slice(to)}`;
}

function main(): void {
  const { values } = parseArgs({
    options: {
      write: { type: "boolean", default: false },
      check: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) return void process.stdout.write(help);
  const made = section();
  if (made === undefined) {
    console.log(`no results in bench/results/${machine}: nothing to put into README.md`);
    return;
  }
  if (!values.write && !values.check) return void console.log(made);
  const path = join(root, "README.md");
  const text = readFileSync(path, "utf8");
  const wanted = withSection(text, made);
  if (values.write) {
    writeFileSync(path, wanted);
  } else if (text !== wanted) {
    throw new Error("README.md: its GPU tables are not those of bench/results; run with --write");
  }
}

if (import.meta.main) {
  try {
    main();
  } catch (error) {
    console.error(error instanceof Error ? error.message : String(error));
    process.exitCode = 1;
  }
}

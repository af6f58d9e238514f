// `bun run bench:threads`: how the CPU backend scales. Prefill, a plain step, a draft step and a verify pass of the default
// run at each number of threads, beside what the machine's memory and its dot products give the same number.

import { writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { parseArgs } from "node:util";
import { embeddedTarget } from "@magicdec/embedded";
import { type DecodeStats, Runner, type SpeculationConfig } from "@magicdec/engine";
import Table from "cli-table3";
import { provenance } from "../gpu/provenance.ts";

const help = `bun run bench:threads [options]

Runs the embedded target on the CPU, 8 sequences of 8000 tokens, with self-speculation over a
streaming cache of 256 tokens and gamma 5, once for each number of threads. T_T: a plain step; T_D: a
draft step; T_V: a verify pass; x: times as fast as the first row. About 90 s on 16 cores.

  --threads LIST   numbers of threads (default: 1, 2, 4, 8, 16 as far as there are cores)
  --B N            sequences (default: 8)
  --prefix-len N   tokens of each (default: 8000)
  --iterations N   iterations behind each time, at least (default: 24)
  --out FILE       write machine and raw figures there as JSON too
  --json           print one JSON object instead of a table
  --help           this text
`;

interface Options {
  readonly threads: readonly number[];
  readonly batch: number;
  readonly prefix: number;
  readonly iterations: number;
  readonly out: string | undefined;
  readonly json: boolean;
}

function parseOptions(argv: readonly string[]): Options | "help" {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      threads: { type: "string" },
      B: { type: "string", default: "8" },
      "prefix-len": { type: "string", default: "8000" },
      iterations: { type: "string", default: "24" },
      out: { type: "string" },
      json: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) return "help";
  const cores = availableParallelism();
  const standard = [1, 2, 4, 8, 16].filter((threads) => threads <= cores);
  return {
    threads: values.threads?.split(",").map((n) => whole("--threads", n, 1024)) ?? standard,
    batch: whole("--B", values.B, 1024),
    prefix: whole("--prefix-len", values["prefix-len"], 1e6),
    iterations: whole("--iterations", values.iterations, 1e4),
    out: values.out,
    json: values.json,
  };
}

function whole(flag: string, text: string, most: number): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= 1 && value <= most) return value;
  throw new RangeError(`${flag}: expected an integer from 1 to ${most}, got "${text}"`);
}

const off: SpeculationConfig = {
  method: "off",
  cache: "full",
  gamma: 0,
  budget: 256,
  sinks: 16,
  window: 32,
  reselectEvery: 512,
  rule: "match",
};
const self: SpeculationConfig = { ...off, method: "self", cache: "streaming", gamma: 5 };
const greedy = { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 1 };

interface Row {
  readonly threads: number;
  readonly prefillTokensPerSecond: number;
  readonly msPlain: number;
  readonly msDraft: number;
  readonly msVerify: number;
  readonly readGigabytesPerSecond: number;
  readonly dotGigaflopsPerSecond: number;
}

async function measure(threads: number, { batch, prefix, iterations }: Options) {
  const newTokens = iterations * (self.gamma + 1);
  using runner = await Runner.load({
    target: embeddedTarget,
    device: "cpu",
    threads,
    batch,
    maxTokens: prefix + newTokens,
  });
  const { vocabSize } = runner.target.config;
  const prompts = Array.from({ length: batch }, (_, s) =>
    Int32Array.from({ length: prefix }, (_, i) => (37 * i * (i % 11) + 1009 * s) % vocabSize),
  );
  const { ms, tokens } = await runner.prefill(prompts);
  const plain = await runner.decode(off, greedy, { maxNewTokens: iterations + 1 });
  const speculative = await runner.decode(self, greedy, { maxNewTokens: newTokens });
  const perIteration = (stats: DecodeStats, part: "msDraft" | "msVerify") =>
    stats.wholeBatch[part] / stats.wholeBatch.iterations;
  const row: Row = {
    threads,
    prefillTokensPerSecond: (1e3 * tokens) / ms,
    msPlain: perIteration(plain.stats, "msVerify"),
    msDraft: perIteration(speculative.stats, "msDraft") / self.gamma,
    msVerify: perIteration(speculative.stats, "msVerify"),
    readGigabytesPerSecond: runner.device.probe("read_bandwidth"),
    dotGigaflopsPerSecond: runner.device.probe("dot_peak"),
  };
  return { row, about: provenance(runner.device) };
}

function print(rows: readonly Row[]): void {
  const [first] = rows;
  if (first === undefined) return;
  const table = new Table({
    head: ["threads", "prefill tok/s", "x", "T_T ms", "x", "T_D ms", "x", "T_V ms", "x"].concat([
      "read GB/s",
      "x",
      "dots GFLOP/s",
      "x",
    ]),
    colAligns: Array.from({ length: 13 }, () => "right"),
    style: { head: [], border: [] },
    chars: { mid: "", "left-mid": "", "mid-mid": "", "right-mid": "" },
  });
  for (const row of rows) {
    const faster = (key: keyof Row) => (row[key] / first[key]).toFixed(2);
    const sooner = (key: keyof Row) => (first[key] / row[key]).toFixed(2);
    table.push([
      row.threads,
      row.prefillTokensPerSecond.toFixed(0),
      faster("prefillTokensPerSecond"),
      row.msPlain.toFixed(2),
      sooner("msPlain"),
      row.msDraft.toFixed(2),
      sooner("msDraft"),
      row.msVerify.toFixed(2),
      sooner("msVerify"),
      row.readGigabytesPerSecond.toFixed(1),
      faster("readGigabytesPerSecond"),
      row.dotGigaflopsPerSecond.toFixed(0),
      faster("dotGigaflopsPerSecond"),
    ]);
  }
  console.log(table.toString());
}

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2));
  if (options === "help") return void process.stdout.write(help);
  const runs = [];
  for (const threads of options.threads) {
    if (!options.json) console.error(`${threads} threads`);
    runs.push(await measure(threads, options));
  }
  const { batch, prefix } = options;
  const rows = runs.map(({ row }) => row);
  const result = { provenance: runs.at(-1)?.about, batch, prefix, gamma: self.gamma, rows };
  const text = JSON.stringify(result, null, 1);
  if (options.out !== undefined) writeFileSync(options.out, `${text}\n`);
  if (options.json) console.log(text);
  else print(rows);
}

try {
  await main();
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  console.error(`bench:threads: ${message} (--help lists the options)`);
  process.exitCode = 1;
}

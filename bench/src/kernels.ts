// Every op at the shapes of the supported models, against the limits of this machine.
// `bun run bench:kernels`.

import { parseArgs } from "node:util";
import { type CpuLevelName, Device } from "@magicdec/tensor";
import Table from "cli-table3";
import { attentionCases, cacheCases } from "./kernels_attention.ts";
import { linearCases, smallCases } from "./kernels_dense.ts";
import {
  type KernelCase,
  type KernelResult,
  type Limits,
  measureKernel,
  probeLimits,
} from "./kernels_measure.ts";
import { samplingCases } from "./kernels_sampling.ts";

const help = `bun run bench:kernels [options] [filter ...]

Times every op at the shapes of the supported models. A filter keeps the rows whose op and shape
contain all its words; several filters keep what any of them keeps:

  bun run bench:kernels "attention d=128" "linear smollm2 m=8"

Columns: us is the median of a call; limit is what bounds it, memory or compute, where its data is
too large for the caches; ratio is its best time over the roofline
max(bytes / bandwidth, flops / peak), whose limits are the best that was probed just before and
after the row; share is the inverse.

  --samples N   samples a row (default: 7)
  --ms N        work in one sample, milliseconds (default: 20)
  --threads N   threads of the device (default: all cores)
  --level NAME  instruction level: auto, baseline, v3, v4, v4_bf16 (default: auto)
  --list        print the rows that would be measured
  --json        print one JSON object instead of a table
  --help        this text
`;

const levels = ["auto", "baseline", "v3", "v4", "v4_bf16"] as const satisfies CpuLevelName[];

interface Options {
  readonly samples: number;
  readonly sampleMs: number;
  readonly threads: number;
  readonly level: CpuLevelName;
  readonly list: boolean;
  readonly json: boolean;
  readonly filters: readonly string[];
}

function parseOptions(argv: readonly string[]): Options | "help" {
  const { values, positionals } = parseArgs({
    args: [...argv],
    allowPositionals: true,
    options: {
      samples: { type: "string", default: "7" },
      ms: { type: "string", default: "20" },
      threads: { type: "string", default: "0" },
      level: { type: "string", default: "auto" },
      list: { type: "boolean", default: false },
      json: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) return "help";
  const level = levels.find((name) => name === values.level);
  if (level === undefined) {
    throw new RangeError(`--level: expected one of ${levels.join(", ")}, got "${values.level}"`);
  }
  return {
    samples: parseInteger("--samples", values.samples, 1, 1000),
    sampleMs: parseInteger("--ms", values.ms, 1, 10_000),
    threads: parseInteger("--threads", values.threads, 0, 1024),
    level,
    list: values.list,
    json: values.json,
    filters: positionals,
  };
}

function parseInteger(flag: string, text: string, least: number, most: number): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= least && value <= most && text.trim() !== "") {
    return value;
  }
  throw new RangeError(`${flag}: expected an integer from ${least} to ${most}, got "${text}"`);
}

function selectedCases(filters: readonly string[]): KernelCase[] {
  const all = [
    ...attentionCases(),
    ...linearCases(),
    ...cacheCases(),
    ...samplingCases(),
    ...smallCases(),
  ];
  if (filters.length === 0) return all;
  const selected = all.filter(({ op, shape }) => {
    const words = `${op} ${shape}`.split(" ");
    return filters.some((filter) =>
      filter.split(/\s+/).every((part) => words.some((word) => word.includes(part))),
    );
  });
  if (selected.length === 0) {
    throw new RangeError(
      `no row contains ${filters.map((f) => `"${f}"`).join(" or ")}; see --list`,
    );
  }
  return selected;
}

function measureAll(device: Device, cases: readonly KernelCase[], options: Options) {
  const limits = probeLimits(device);
  const results = cases.map((kernel, i) => {
    if (process.stderr.isTTY) {
      process.stderr.write(`\r\x1b[K${i + 1}/${cases.length} ${kernel.op} ${kernel.shape}`);
    }
    // Half of it: the other half is the set-up's and everybody else's.
    const { availableMemoryBytes } = device.info;
    if (kernel.memoryBytes > availableMemoryBytes / 2) return skipped(kernel, availableMemoryBytes);
    return measureKernel(device, kernel, limits, options);
  });
  if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
  return { limits, results };
}

function skipped({ op, shape, bytes, flops, memoryBytes }: KernelCase, available: number) {
  const gigabytes = (count: number) => (count / 1e9).toFixed(1);
  const reason = `needs ${gigabytes(memoryBytes)} GB, ${gigabytes(available)} GB are free`;
  return { op, shape, bytes, flops, skipped: reason };
}

type Row = KernelResult | ReturnType<typeof skipped>;

function resultTable(rows: readonly Row[]): string {
  const table = new Table({
    head: ["op", "shape", "us", "+-", "GB/s", "GFLOP/s", "limit", "share", "ratio"],
    colAligns: ["left", "left", "right", "right", "right", "right", "left", "right", "right"],
    style: { head: [], border: [] },
    chars: { mid: "", "left-mid": "", "mid-mid": "", "right-mid": "" },
  });
  for (const row of rows) {
    if (!("us" in row)) {
      table.push([row.op, row.shape, { colSpan: 7, content: `skipped: ${row.skipped}` }]);
      continue;
    }
    const { us, usDeviation, limit, rooflineRatio } = row;
    table.push([
      row.op,
      row.shape,
      figure(us),
      figure(usDeviation),
      figure(row.gigabytesPerSecond),
      row.flops === 0 ? "" : figure(row.gigaflopsPerSecond),
      limit ?? "",
      rooflineRatio === undefined ? "" : `${Math.round(100 / rooflineRatio)} %`,
      rooflineRatio === undefined ? "" : rooflineRatio.toFixed(2),
    ]);
  }
  return table.toString();
}

/** Three significant digits. */
function figure(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}

function machineLine(device: Device, { gigabytesPerSecond, gigaflopsPerSecond }: Limits): string {
  const { threads, level } = device.info;
  return (
    `${threads} threads, level ${level}; read ${figure(gigabytesPerSecond)} GB/s, ` +
    `dot products ${figure(gigaflopsPerSecond)} GFLOP/s at the start`
  );
}

function main(): void {
  const options = parseOptions(process.argv.slice(2));
  if (options === "help") return void process.stdout.write(help);
  const cases = selectedCases(options.filters);
  if (options.list) {
    for (const { op, shape } of cases) console.log(`${op} ${shape}`);
    return;
  }
  using device = Device.open({ threads: options.threads, level: options.level });
  const { limits, results } = measureAll(device, cases, options);
  if (options.json) {
    const { threads, level } = device.info;
    console.log(JSON.stringify({ machine: { threads, level, ...limits }, results }));
    return;
  }
  console.log(machineLine(device, limits));
  console.log(resultTable(results));
}

try {
  main();
} catch (error) {
  console.error(error instanceof Error ? error.message : String(error));
  process.exitCode = 1;
}

// Every op at the shapes of the supported models, against the limits of this machine.
// `bun run bench:kernels`.

import { writeFileSync } from "node:fs";
import { parseArgs } from "node:util";
import { type CpuLevelName, Device, deviceOptions, type DeviceName } from "@magicdec/tensor";
import Table from "cli-table3";
import { gpuCases, gpuTableHead, gpuTableRow, measureOnGpu } from "../gpu/kernels.ts";
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

On a GPU the rows are those of Llama-3.1-8B at long contexts, over data that no cache holds (41 GB of
memory, about a minute); ratio is the median over the roofline of the run's best probes.

  --device NAME   cpu, cuda or cuda:N (default: cpu)
  --samples N     samples a row (default: 7)
  --ms N          work in one sample, milliseconds (default: 20, on a GPU 10)
  --threads N     CPU: threads of the device (default: all cores)
  --level NAME    CPU: instruction level: auto, baseline, v3, v4, v4_bf16 (default: auto)
  --compare FILE  GPU: put the figures of bench/gpu/peers.py beside these
  --out FILE      GPU: write machine, limits and raw samples there too
  --list          print the rows that would be measured
  --json          print one JSON object instead of a table
  --help          this text
`;

const levels = ["auto", "baseline", "v3", "v4", "v4_bf16"] as const satisfies CpuLevelName[];

interface Options {
  readonly device: DeviceName;
  readonly samples: number;
  readonly sampleMs: number;
  readonly threads: number;
  readonly level: CpuLevelName;
  readonly compare: string | undefined;
  readonly out: string | undefined;
  readonly list: boolean;
  readonly json: boolean;
  readonly filters: readonly string[];
}

function parseOptions(argv: readonly string[]): Options | "help" {
  const { values, positionals } = parseArgs({
    args: [...argv],
    allowPositionals: true,
    options: {
      device: { type: "string", default: "cpu" },
      samples: { type: "string", default: "7" },
      ms: { type: "string" },
      threads: { type: "string", default: "0" },
      level: { type: "string", default: "auto" },
      compare: { type: "string" },
      out: { type: "string" },
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
  const device = values.device as DeviceName;
  const gpu = deviceOptions(device).backend === "cuda";
  return {
    device,
    samples: parseInteger("--samples", values.samples, 1, 1000),
    sampleMs: parseInteger("--ms", values.ms ?? (gpu ? "10" : "20"), 1, 10_000),
    threads: parseInteger("--threads", values.threads, 0, 1024),
    level,
    compare: values.compare,
    out: values.out,
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

function cpuCases(): KernelCase[] {
  return [
    ...attentionCases(),
    ...linearCases(),
    ...cacheCases(),
    ...samplingCases(),
    ...smallCases(),
  ];
}

function selectedCases(all: readonly KernelCase[], filters: readonly string[]) {
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
    showProgress(i, cases.length, kernel);
    // Half of it: the other half is the set-up's and everybody else's.
    const { availableMemoryBytes } = device.info;
    if (kernel.memoryBytes > availableMemoryBytes / 2) return skipped(kernel, availableMemoryBytes);
    return measureKernel(device, kernel, limits, options);
  });
  clearProgress();
  return { limits, results };
}

function showProgress(i: number, count: number, { op, shape }: KernelCase): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${i + 1}/${count} ${op} ${shape}`);
}

function clearProgress(): void {
  if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
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

function runOnGpu(device: Device, cases: readonly KernelCase[], options: Options): void {
  const onCase = (i: number, kernel: KernelCase) => showProgress(i, cases.length, kernel);
  const measured = measureOnGpu(device, cases, { ...options, onCase });
  clearProgress();
  const text = JSON.stringify(measured, null, 1);
  if (options.out !== undefined) writeFileSync(options.out, `${text}\n`);
  if (options.json) return void console.log(text);
  const { limits, results } = measured;
  const { gigabytesPerSecond: bandwidth, gigaflopsPerSecond: peak } = limits;
  const table = new Table({
    head: [...gpuTableHead],
    colAligns: ["left", "left", "right", "right", "right", "left", "right", "right", "left"],
    style: { head: [], border: [] },
    chars: { mid: "", "left-mid": "", "mid-mid": "", "right-mid": "" },
  });
  table.push(...results.map(gpuTableRow));
  console.log(`${device.label}; read ${figure(bandwidth)} GB/s, bf16 ${figure(peak)} GFLOP/s`);
  console.log(table.toString());
  const failed = results.filter((row) => "skipped" in row).length;
  if (failed > 0) throw new Error(`${failed} of ${results.length} rows could not be measured`);
}

function main(): void {
  const options = parseOptions(process.argv.slice(2));
  if (options === "help") return void process.stdout.write(help);
  const { backend, device: index } = deviceOptions(options.device);
  const gpu = backend === "cuda";
  const cases = selectedCases(gpu ? gpuCases() : cpuCases(), options.filters);
  if (options.list) {
    for (const { op, shape } of cases) console.log(`${op} ${shape}`);
    return;
  }
  const { threads, level } = options;
  using device = Device.open({ backend, device: index, threads, level });
  if (gpu) return runOnGpu(device, cases, options);
  const { limits, results } = measureAll(device, cases, options);
  if (options.json) {
    const machine = { threads: device.info.threads, level: device.info.level, ...limits };
    return void console.log(JSON.stringify({ machine, results }));
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

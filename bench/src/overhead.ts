// What the machinery costs beside the maths: the boundary, the queue, graphs, waiting, and the
// host's share of a whole iteration. `bun run bench:overhead`.

import { parseArgs } from "node:util";
import { Device, type DeviceName, deviceOptions } from "@magicdec/tensor";
import Table from "cli-table3";
import { boundaryCases, graphCases, queueCases, waitCases } from "./overhead_cases.ts";
import { type IterationCost, measureIterations } from "./overhead_iteration.ts";
import { type CallCost, measureCalls } from "./overhead_measure.ts";

const help = `bun run bench:overhead [options]

Times FFI calls, descriptor writes, enqueued ops, graph replay, event waits, and the host's time in
an iteration of the embedded model.

  --device NAME  cpu, cuda or cuda:N (default: cpu)
  --threads N    CPU: threads of the device (default: all cores)
  --ms N         time spent on each row of the first table, milliseconds (default: 300)
  --json         print one JSON object instead of tables; times in microseconds
  --help         this text
`;

const iterationNotes = `8 sequences of 200 tokens, 300 new ones each.
host: wall time not spent waiting for results (without graphs: waiting for room in the queue counts);
host cpu: processor time of the host's thread; device: draft, verify, accept and selection;
gaps: wall time outside the device's phases.`;

interface Options {
  readonly device: DeviceName;
  readonly threads: number;
  readonly ms: number;
  readonly json: boolean;
}

function parseOptions(argv: readonly string[]): Options | "help" {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      device: { type: "string", default: "cpu" },
      threads: { type: "string", default: "0" },
      ms: { type: "string", default: "300" },
      json: { type: "boolean", default: false },
      help: { type: "boolean", default: false },
    },
  });
  if (values.help) return "help";
  return {
    device: values.device as DeviceName,
    threads: parseInteger("--threads", values.threads, 0, 1024),
    ms: parseInteger("--ms", values.ms, 10, 60_000),
    json: values.json,
  };
}

function parseInteger(flag: string, text: string, least: number, most: number): number {
  const value = Number(text);
  if (Number.isInteger(value) && value >= least && value <= most && text.trim() !== "") {
    return value;
  }
  throw new RangeError(`${flag}: expected an integer from ${least} to ${most}, got "${text}"`);
}

async function measure(options: Options) {
  const calls: CallCost[] = [];
  using device = Device.open({ ...deviceOptions(options.device), threads: options.threads });
  for (const cases of [boundaryCases, queueCases, graphCases, waitCases]) {
    calls.push(...(await measureCalls(cases(device), options.ms)));
  }
  const { threads, level } = device.info;
  const iterations = await measureIterations(options.device, options.threads);
  return { machine: { device: device.label, threads, level }, calls, iterations };
}

function callTable(calls: readonly CallCost[]): string {
  const table = new Table({
    head: ["what", "median us", "mean us", "p99 us", "samples"],
    colAligns: ["left", "right", "right", "right", "right"],
    style: { head: [], border: [] },
  });
  for (const { name, medianUs, meanUs, p99Us, samples } of calls) {
    table.push([name, figure(medianUs), figure(meanUs), figure(p99Us), samples]);
  }
  return table.toString();
}

function iterationTable(iterations: readonly IterationCost[]): string {
  const table = new Table({
    head: ["an iteration", "graphs", "host us", "host cpu us", "device us", "gaps us", "count"],
    colAligns: ["left", "left", "right", "right", "right", "right", "right"],
    style: { head: [], border: [] },
  });
  for (const row of iterations) {
    const { name, graphs, hostUs, hostCpuUs, deviceUs, otherUs } = row;
    const times = [hostUs, hostCpuUs, deviceUs, otherUs].map((us) => us.toFixed(0));
    table.push([name, graphs ? "on" : "off", ...times, row.iterations]);
  }
  return table.toString();
}

/** Three significant digits. */
function figure(us: number): string {
  return us >= 100 ? us.toFixed(0) : us.toPrecision(3);
}

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2));
  if (options === "help") return void process.stdout.write(help);
  const result = await measure(options);
  if (options.json) return void console.log(JSON.stringify(result));
  const { device, threads } = result.machine;
  console.log(threads > 0 ? `${device}, ${threads} threads` : device);
  console.log(callTable(result.calls));
  console.log(iterationTable(result.iterations));
  console.log(iterationNotes);
}

try {
  await main();
} catch (error) {
  const message = error instanceof Error ? error.message : String(error);
  console.error(`bench:overhead: ${message} (--help lists the options)`);
  process.exitCode = 1;
}

// The kernel table of a GPU: graph replays over distinct data, timed by the device, as a share of limits that the same run
// measures.

import { readFileSync } from "node:fs";
import type { Device, Graph, Tensor } from "@magicdec/tensor";
import { cacheCases } from "../src/kernels_attention.ts";
import { smallCases } from "../src/kernels_dense.ts";
import { callsPerSample, type KernelCase, type Limits, median } from "../src/kernels_measure.ts";
import { samplingCases } from "../src/kernels_sampling.ts";
import { attentionCases } from "./kernels_attention.ts";
import { linearCases } from "./kernels_linear.ts";
import { type Provenance, provenance } from "./provenance.ts";

/** Far beyond any cache. */
const probeMegabytes = 4096;

export interface GpuRow {
  readonly op: string;
  readonly shape: string;
  /** Median over the samples. */
  readonly us: number;
  /** Means of the calls of each replay. */
  readonly samplesUs: readonly number[];
  readonly bytes: number;
  readonly flops: number;
  readonly terabytesPerSecond: number;
  readonly teraflopsPerSecond: number;
  /** What bounds the call; absent where its data stays in the caches. */
  readonly limit?: "memory" | "compute";
  /** `us` over max(bytes / bandwidth, flops / peak), the limits measured in the same run. */
  readonly ratio?: number;
  readonly peer?: PeerRow;
}

export interface SkippedRow {
  readonly op: string;
  readonly shape: string;
  readonly skipped: string;
}

/** A line of bench/gpu/peers.py. */
export interface PeerRow {
  readonly op: string;
  readonly shape: string;
  readonly us: number;
  /** The library and the variant that was fastest. */
  readonly by: string;
}

export interface GpuKernelResults {
  readonly provenance: Provenance;
  readonly limits: Limits;
  readonly results: readonly (GpuRow | SkippedRow)[];
  readonly peers?: { readonly provenance: unknown };
}

export function gpuCases(): KernelCase[] {
  return [
    ...attentionCases(),
    ...linearCases(),
    ...cacheCases(),
    ...samplingCases({ b: 32, vocabularies: [128256] }),
    ...smallCases(/^llama/),
  ];
}

export interface GpuMeasureOptions {
  readonly samples: number;
  readonly sampleMs: number;
  /** A file of bench/gpu/peers.py. */
  readonly compare: string | undefined;
  readonly onCase: (index: number, kernel: KernelCase) => void;
}

export function measureOnGpu(
  device: Device,
  cases: readonly KernelCase[],
  options: GpuMeasureOptions,
): GpuKernelResults {
  const peers = options.compare === undefined ? undefined : readPeers(options.compare);
  const limits = [probe(device)];
  const measured = cases.map((kernel, i) => {
    options.onCase(i, kernel);
    try {
      return measure(device, kernel, options);
    } catch (error) {
      // One shape that does not fit or is refused must not cost the others their figures.
      const { op, shape } = kernel;
      return { op, shape, skipped: error instanceof Error ? error.message : String(error) };
    }
  });
  limits.push(probe(device));
  const best = {
    gigabytesPerSecond: Math.max(...limits.map((limit) => limit.gigabytesPerSecond)),
    gigaflopsPerSecond: Math.max(...limits.map((limit) => limit.gigaflopsPerSecond)),
  };
  const results = measured.map((row) =>
    "skipped" in row ? row : withPeer(finish(row, best), peers?.rows),
  );
  return {
    provenance: provenance(device),
    limits: best,
    results,
    ...(peers === undefined ? {} : { peers: { provenance: peers.provenance } }),
  };
}

function probe(device: Device): Limits {
  return {
    gigabytesPerSecond: device.probe("read_bandwidth", probeMegabytes),
    gigaflopsPerSecond: device.probe("dot_peak"),
  };
}

interface Measured {
  readonly kernel: KernelCase;
  readonly streams: boolean;
  readonly samplesUs: readonly number[];
}

function measure(
  device: Device,
  kernel: KernelCase,
  { samples, sampleMs }: GpuMeasureOptions,
): Measured {
  using stack = new DisposableStack();
  const { enqueue, copies, streams } = kernel.prepare(device, stack);
  const times = stack.use(device.alloc([2], "f64"));
  const timed = (count: number) =>
    device.stream.capture(() => {
      device.stream.timestamp(times, 0);
      for (let i = 0; i < count; i++) enqueue(i % copies);
      device.stream.timestamp(times, 1);
    });
  const first = stack.use(timed(copies));
  const count = callsPerSample(replayUs(device, first, times) / copies, copies, sampleMs);
  const graph = count === copies ? first : stack.use(timed(count));
  const samplesUs = Array.from({ length: samples }, () => replayUs(device, graph, times) / count);
  return { kernel, streams, samplesUs };
}

/** The second of two replays in a row: the first wakes the chip and hides the host's launch. */
function replayUs(device: Device, graph: Graph, times: Tensor): number {
  graph.launch();
  graph.launch();
  device.stream.sync();
  const [start = 0, end = 0] = Array.from(times.read());
  return (end - start) / 1e3;
}

function finish({ kernel, streams, samplesUs }: Measured, limits: Limits): GpuRow {
  const { op, shape, bytes, flops } = kernel;
  const us = median(samplesUs);
  // GB/s is bytes a nanosecond: both quotients are nanoseconds.
  const memoryUs = bytes / limits.gigabytesPerSecond / 1e3;
  const computeUs = flops / limits.gigaflopsPerSecond / 1e3;
  const limit = computeUs > memoryUs ? "compute" : streams ? "memory" : undefined;
  return {
    op,
    shape,
    us,
    samplesUs,
    bytes,
    flops,
    terabytesPerSecond: bytes / us / 1e6,
    teraflopsPerSecond: flops / us / 1e6,
    ...(limit === undefined ? {} : { limit, ratio: us / Math.max(memoryUs, computeUs) }),
  };
}

interface Peers {
  readonly provenance: unknown;
  readonly rows: readonly PeerRow[];
}

function readPeers(path: string): Peers {
  const { provenance, rows } = JSON.parse(readFileSync(path, "utf8")) as Partial<Peers>;
  if (Array.isArray(rows)) return { provenance, rows };
  throw new RangeError(
    `--compare: expected a file of bench/gpu/peers.py, got ${path} without rows`,
  );
}

function withPeer(row: GpuRow, peers: readonly PeerRow[] = []): GpuRow {
  const peer = peers.find(({ op, shape }) => op === row.op && shape === row.shape);
  return peer === undefined ? row : { ...row, peer };
}

/** The cells of the printed table. */
export const gpuTableHead = [
  "op",
  "shape",
  "us",
  "TB/s",
  "TFLOP/s",
  "limit",
  "ratio",
  "peer us",
  "by",
] as const;

export function gpuTableRow(row: GpuRow | SkippedRow): string[] {
  if ("skipped" in row) return [row.op, row.shape, "skipped:", row.skipped];
  const { op, shape, us, limit, ratio, peer } = row;
  return [
    op,
    shape,
    figure(us),
    figure(row.terabytesPerSecond),
    row.flops === 0 ? "" : figure(row.teraflopsPerSecond),
    limit ?? "",
    ratio === undefined ? "" : ratio.toFixed(2),
    peer === undefined ? "" : figure(peer.us),
    peer?.by ?? "",
  ];
}

/** Three significant digits. */
function figure(value: number): string {
  return value >= 100 ? value.toFixed(0) : value.toPrecision(3);
}

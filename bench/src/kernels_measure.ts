// How a kernel is timed: repeated inside a graph between two timestamps of the device, so that the
// host costs nothing, with the machine's limits probed before and after, since other tenants move
// them.

import type { Device, ProbeName } from "@magicdec/tensor";

/** One row of the table. */
export interface KernelCase {
  readonly op: string;
  readonly shape: string;
  /** Bytes that one call has to move. */
  readonly bytes: number;
  /** FLOPs that one call has to do on the dot-product path; 0 for ops without a matrix product. */
  readonly flops: number;
  /** Bytes of device memory that `prepare` takes. */
  readonly memoryBytes: number;
  /** Makes the tensors. They are freed through `stack`. */
  readonly prepare: (device: Device, stack: DisposableStack) => PreparedKernel;
}

export interface PreparedKernel {
  /** Enqueues one call on copy `i` of the data. */
  readonly enqueue: (i: number) => void;
  /** Calls that touch different data; enough of them and the caches hold none of it. */
  readonly copies: number;
  /**
   * Whether the data comes from memory rather than from the caches, so that a bandwidth limit means
   * something.
   */
  readonly streams: boolean;
}

export interface KernelResult {
  readonly op: string;
  readonly shape: string;
  /** Median over the samples. */
  readonly us: number;
  readonly usDeviation: number;
  readonly bytes: number;
  readonly flops: number;
  readonly gigabytesPerSecond: number;
  readonly gigaflopsPerSecond: number;
  /** What bounds the call; absent where its data stays in the caches. */
  readonly limit?: "memory" | "compute";
  /**
   * Best time over the roofline max(bytes / bandwidth, flops / peak). The probes are best times
   * too: what else runs on the machine makes any of them slower, and none faster.
   */
  readonly rooflineRatio?: number;
  readonly skipped?: string;
}

export interface Limits {
  readonly gigabytesPerSecond: number;
  readonly gigaflopsPerSecond: number;
}

export interface MeasureOptions {
  readonly samples: number;
  /** Milliseconds of work in one sample. */
  readonly sampleMs: number;
}

const probeMegabytes = 192;

/** The read bandwidth and the dot-product peak of this machine, now. */
export function probeLimits(device: Device): Limits {
  return {
    gigabytesPerSecond: device.probe("read_bandwidth", probeMegabytes),
    gigaflopsPerSecond: device.probe("dot_peak"),
  };
}

/** Measures one case; `machine` are limits seen before, which decide what probe belongs to it. */
export function measureKernel(
  device: Device,
  kernel: KernelCase,
  machine: Limits,
  options: MeasureOptions,
): KernelResult {
  using stack = new DisposableStack();
  const prepared = kernel.prepare(device, stack);
  const times = stack.use(device.alloc([2], "f64"));
  const timed = (count: number) =>
    device.stream.capture(() => {
      device.stream.timestamp(times, 0);
      for (let i = 0; i < count; i++) prepared.enqueue(i % prepared.copies);
      device.stream.timestamp(times, 1);
    });
  const first = stack.use(timed(prepared.copies));
  launchUs(device, first, times);
  const estimateUs = launchUs(device, first, times) / prepared.copies;
  const count = callsPerSample(estimateUs, prepared.copies, options.sampleMs);
  const graph = stack.use(timed(count));
  const limit = limitOf(kernel, prepared, machine);
  const probe = limit === undefined ? undefined : () => probeOne(device, limit);
  let peak = probe?.() ?? 0;
  const samples: number[] = [];
  for (let i = 0; i < options.samples; i++) samples.push(launchUs(device, graph, times) / count);
  peak = Math.max(peak, probe?.() ?? 0);
  return summarise(kernel, samples, limit, machine, peak);
}

function launchUs(
  device: Device,
  graph: { launch(): void },
  times: { read(): ArrayLike<number> },
): number {
  graph.launch();
  device.stream.sync();
  const [start = 0, end = 0] = Array.from(times.read());
  return (end - start) / 1e3;
}

/**
 * Whole rounds over the copies, about `sampleMs` long; a graph of more calls than this has nothing
 * to add.
 */
export function callsPerSample(estimateUs: number, copies: number, sampleMs: number): number {
  const most = 2000;
  const wanted = Math.min(Math.max((sampleMs * 1e3) / Math.max(estimateUs, 0.1), 1), most);
  return Math.max(Math.round(wanted / copies), 1) * copies;
}

function limitOf(
  { bytes, flops }: KernelCase,
  { streams }: PreparedKernel,
  { gigabytesPerSecond, gigaflopsPerSecond }: Limits,
): KernelResult["limit"] {
  const computeBound = flops / gigaflopsPerSecond > bytes / gigabytesPerSecond;
  if (computeBound) return "compute";
  return streams ? "memory" : undefined;
}

function probeOne(device: Device, limit: "memory" | "compute"): number {
  const kind: ProbeName = limit === "memory" ? "read_bandwidth" : "dot_peak";
  return device.probe(kind, probeMegabytes);
}

function summarise(
  { op, shape, bytes, flops }: KernelCase,
  samples: readonly number[],
  limit: KernelResult["limit"],
  machine: Limits,
  peak: number,
): KernelResult {
  const us = median(samples);
  const mean = samples.reduce((sum, x) => sum + x, 0) / samples.length;
  const variance = samples.reduce((sum, x) => sum + (x - mean) ** 2, 0) / samples.length;
  const bandwidth = limit === "memory" ? peak : machine.gigabytesPerSecond;
  const dots = limit === "compute" ? peak : machine.gigaflopsPerSecond;
  // GB/s is bytes a nanosecond: both quotients are nanoseconds.
  const rooflineUs = Math.max(bytes / bandwidth, flops / dots) / 1e3;
  return {
    op,
    shape,
    us,
    usDeviation: Math.sqrt(variance),
    bytes,
    flops,
    gigabytesPerSecond: bytes / us / 1e3,
    gigaflopsPerSecond: flops / us / 1e3,
    ...(limit === undefined ? {} : { limit, rooflineRatio: Math.min(...samples) / rooflineUs }),
  };
}

export function median(samples: readonly number[]): number {
  const sorted = samples.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  const upper = sorted[middle] ?? Number.NaN;
  return sorted.length % 2 === 1 ? upper : ((sorted[middle - 1] ?? upper) + upper) / 2;
}

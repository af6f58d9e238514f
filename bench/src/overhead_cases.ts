import { writeRmsNormDesc } from "@magicdec/abi";
import { add, type Device, rmsNorm, type Tensor } from "@magicdec/tensor";
import type { CallCase } from "./overhead_measure.ts";

/** Calls of one sample, where a call is too short for the clock. */
const many = 1000;
/** Ops of one sample: fewer than the queue holds, so that enqueueing never waits for the device. */
const burst = 256;
/** Ops of the long graph; about an iteration of gamma 4 over 8 layers. */
const graphOps = 400;
/** After this long with nothing to do the device's threads sleep, milliseconds. */
const idleMs = 5;

/** One row of 64: an op whose maths costs next to nothing. */
function smallNorm(device: Device) {
  const row = () => device.alloc([1, 64], "bf16");
  return { x: row(), weight: device.alloc([64], "bf16"), out: row(), eps: 1e-5 };
}

export function boundaryCases(device: Device): readonly CallCase[] {
  const { symbols, ring } = device;
  const norm = smallNorm(device);
  return [
    {
      name: "FFI call",
      calls: many,
      run: () => {
        for (let i = 0; i < many; i++) symbols.md_abi_version();
      },
    },
    {
      name: "descriptor write (rms_norm, 136 bytes)",
      calls: many,
      run: () => {
        for (let i = 0; i < many; i++) writeRmsNormDesc(ring, ring.take(), norm);
      },
    },
  ];
}

export function queueCases(device: Device): readonly CallCase[] {
  const { stream } = device;
  const norm = smallNorm(device);
  const enqueue = () => {
    for (let i = 0; i < burst; i++) rmsNorm(norm);
  };
  const sync = () => stream.sync();
  return [
    { name: "enqueue an op (host)", calls: burst, run: enqueue, before: sync, after: sync },
    {
      name: "enqueue and run a small op",
      calls: burst,
      run: () => {
        enqueue();
        sync();
      },
    },
  ];
}

export function graphCases(device: Device): readonly CallCase[] {
  const { stream } = device;
  const norm = smallNorm(device);
  const wide = wideAdd(device);
  const sync = () => stream.sync();
  const one = stream.capture(() => rmsNorm(norm));
  const long = stream.capture(() => {
    for (let i = 0; i < graphOps; i++) rmsNorm(norm);
  });
  const parallel = stream.capture(() => {
    for (let i = 0; i < graphOps; i++) add(wide);
  });
  const replay = (graph: typeof one) => () => {
    graph.launch();
    sync();
  };
  return [
    {
      name: "launch a graph (host)",
      calls: 1,
      run: () => long.launch(),
      before: sync,
      after: sync,
    },
    { name: "replay a graph of one op and wait", calls: 1, run: replay(one) },
    { name: "replay a small op in a graph", calls: graphOps, run: replay(long) },
    {
      name: "replay an op of all threads in a graph",
      calls: graphOps,
      run: replay(parallel),
    },
  ];
}

/** Enough elements that the op is cut for all threads, few enough that the cut is what costs. */
function wideAdd(device: Device): { a: Tensor; b: Tensor; out: Tensor } {
  const rows = () => device.alloc([64, 256], "bf16");
  return { a: rows(), b: rows(), out: rows() };
}

export function waitCases(device: Device): readonly CallCase[] {
  const { stream } = device;
  const event = stream.event();
  const roundTrip = () => {
    event.record();
    event.wait();
  };
  return [
    { name: "event round trip, device awake", calls: 1, run: roundTrip },
    {
      name: "event round trip, device asleep",
      calls: 1,
      run: roundTrip,
      before: () => Bun.sleepSync(idleMs),
    },
    { name: "sync of an empty queue", calls: 1, run: () => stream.sync() },
  ];
}

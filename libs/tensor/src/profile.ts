// Times of single ops: each is enqueued alone, between two writes of the device's clock.

import { StatusError } from "@magicdec/abi";
import type { Device } from "./device.ts";

/** What a reader of a profile wants to tell apart. */
export type OpClass =
  "attention" | "linear" | "norm, rope and small" | "sampling" | "accept" | "select";

const classes = {
  md_attention: "attention",
  md_linear: "linear",
  md_embedding: "norm, rope and small",
  md_rms_norm: "norm, rope and small",
  md_rope_table: "norm, rope and small",
  md_rope_append: "norm, rope and small",
  md_silu_mul: "norm, rope and small",
  md_add: "norm, rope and small",
  md_cast: "norm, rope and small",
  md_copy: "norm, rope and small",
  md_positions: "norm, rope and small",
  md_sample: "sampling",
  md_accept: "accept",
  md_publish: "accept",
  md_keep_queries: "select",
  md_snap_score: "select",
  md_snap_select: "select",
  md_gather_kv: "select",
} as const satisfies Record<string, OpClass>;

type OpName = keyof typeof classes;

export interface OpTime {
  /** "md_linear" */
  readonly op: string;
  readonly kind: OpClass;
  /** How many timestamps the profiled code itself had enqueued before: they mark its phases. */
  readonly phase: number;
  /** From the clock before it to the clock after it, less what the clock takes. */
  readonly ms: number;
}

export interface OpTimes {
  readonly ops: readonly OpTime[];
  /** What writing the clock takes; taken off each time. */
  readonly msClock: number;
}

const mostOps = 1 << 15;
/** Clocks one after the other, to know what one takes. */
const emptyClocks = 64;

/**
 * Runs `enqueue`, which must enqueue op by op (a graph's launch is not seen), with the device's
 * clock written between any two ops, and waits. Nothing overlaps then and every op is followed by a
 * gap: the times show where an iteration goes, their sum is not what it takes.
 */
export function profileOps(device: Device, enqueue: () => void): OpTimes {
  const real = device.symbols;
  const calls: { op: OpName; phase: number }[] = [];
  using clocks = device.alloc([mostOps + emptyClocks], "f64");
  let written = 0;
  const clock = (): number => {
    if (written === clocks.elements) {
      const text = `profile: expected at most ${mostOps} ops, got more`;
      throw new StatusError("invalid_argument", "profile", text);
    }
    return real.md_timestamp(device.context, clocks.address + 8 * written++);
  };
  let phase = 0;
  const timed = { ...real };
  for (const op of Object.keys(classes) as OpName[]) {
    timed[op] = (context: number, desc: number) => {
      calls.push({ op, phase });
      return clock() || real[op](context, desc);
    };
  }
  timed.md_timestamp = (context: number, to: number) => {
    phase++;
    return real.md_timestamp(context, to);
  };
  device.symbols = timed;
  try {
    enqueue();
  } finally {
    device.symbols = real;
  }
  const clockRows = calls.length;
  for (let i = 0; i < emptyClocks; i++) device.check("md_timestamp", clock());
  const at = clocks.read();
  const between = (i: number) => ((at[i + 1] as number) - (at[i] as number)) / 1e6;
  const empty = Array.from({ length: emptyClocks - 1 }, (_, i) => between(clockRows + i));
  const msClock = empty.sort((a, b) => a - b)[empty.length >> 1] as number;
  const ops = calls.map(({ op, phase }, i) => ({
    op,
    kind: classes[op],
    phase,
    ms: Math.max(0, between(i) - msClock),
  }));
  return { ops, msClock };
}

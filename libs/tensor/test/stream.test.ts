// Streams, graphs, events, timestamps: the same rules on every backend.

import { describe, expect, test } from "bun:test";
import { bf16, expectSame, forEachKind, int32, Random, readNumbers } from "@magicdec/testkit";
import {
  add,
  allocWeight,
  copy,
  Device,
  linear,
  packedWeightBytes,
  positions,
  publish,
  StatusError,
  type Tensor,
  weightPack,
} from "@magicdec/tensor";

/** The StatusError that `call` throws. */
function refusal(call: () => unknown): StatusError {
  try {
    call();
  } catch (error) {
    if (error instanceof StatusError) return error;
    throw error;
  }
  throw new Error("expected a StatusError, nothing was thrown");
}

/** What holds on every backend, whether it computes or records. */
function rules(open: () => Device): void {
  test("inside a capture, a call that allocates, reads or waits is refused by name", () => {
    using device = open();
    using x = device.alloc([64], "bf16");
    using event = device.stream.event();
    event.record();
    const { stream } = device;
    using other = stream.capture(() => add({ a: x, b: x, out: x }));
    const forbidden: Record<string, () => unknown> = {
      md_memory_alloc: () => device.alloc([1], "f32"),
      md_memory_read: () => x.read(),
      md_stream_sync: () => stream.sync(),
      md_event_wait: () => event.wait(),
      md_graph_begin: () => stream.capture(() => undefined),
      md_graph_launch: () => other.launch(),
      md_probe: () => device.probe("read_bandwidth", 1),
    };
    for (const [op, call] of Object.entries(forbidden)) {
      const error = refusal(() => stream.capture(call));
      expect([op, error.status, error.op]).toEqual([op, "capture_violation", op]);
      expect(error.message).toStartWith(`${op}: `);
    }
    // The refused recordings left nothing behind.
    using graph = stream.capture(() => add({ a: x, b: x, out: x }));
    graph.launch();
    stream.sync();
    expect(x.read()).toHaveLength(64);
  });

  test("an exception inside a capture drops the recording and goes on to the caller", () => {
    using device = open();
    using x = device.alloc([8], "bf16");
    const failing = () =>
      device.stream.capture(() => {
        add({ a: x, b: x, out: x });
        throw new Error("from inside");
      });
    expect(failing).toThrow("from inside");
    device.stream.sync();
    expect(x.read()).toHaveLength(8);
  });

  test("an event waits for its last mark, and returns at once where there is none", () => {
    using device = open();
    using x = device.alloc([1024], "bf16");
    using event = device.stream.event();
    event.wait();
    for (let i = 0; i < 10; i++) {
      add({ a: x, b: x, out: x });
      event.record();
    }
    event.wait();
  });
}

describe("null", () => rules(() => Device.open({ backend: "null" })));

forEachKind((backend) => {
  rules(() => backend.open());

  test("a graph replayed is the ops run again, with what device memory holds at the time", () => {
    using device = backend.open();
    const random = new Random();
    const [rows, n] = [4, 192];
    const values = random.bf16(n * n, 1 / Math.sqrt(n));
    const x = random.bf16(rows * n);
    using weightSource = device.from(values, [n, n], "bf16");
    const weight = allocWeight(device, n, n);
    using _weightData = weight.data;
    weightPack({ source: weightSource, weight });
    const step = (state: Tensor, next: Tensor) => {
      linear({ x: state, weight, out: next, residual: state });
      copy({ source: next, out: state });
    };
    using eager = bf16(device, x, [rows, n]);
    using eagerNext = device.alloc([rows, n], "bf16");
    using replayed = bf16(device, x, [rows, n]);
    using replayedNext = device.alloc([rows, n], "bf16");
    using graph = device.stream.capture(() => step(replayed, replayedNext));
    expectSame(replayed.read(), eager.read(), "capturing runs nothing");
    for (let i = 0; i < 5; i++) {
      step(eager, eagerNext);
      graph.launch();
    }
    expectSame(replayed.read(), eager.read(), "five steps");
    replayed.write(eagerNext.read());
    graph.launch();
    step(eager, eagerNext);
    expectSame(replayedNext.read(), eagerNext.read(), "after a write");
    expect(weight.data.bytes).toBe(packedWeightBytes(device, n, n));
  });

  test("lengths move on inside a graph, and the host follows through a ring and an event", () => {
    using device = backend.open();
    const slots = 4;
    using lens = int32(device, [10, 20]);
    using at = device.alloc([2], "i32");
    using kvLen = device.alloc([2], "i32");
    using ring = device.alloc([slots, 8], "u8", { kind: "host" });
    using counter = device.alloc([1], "u32", { kind: "host" });
    using event = device.stream.event();
    using graph = device.stream.capture(() => {
      positions({ lens, positions: at, kvLen, offset: 0 });
      copy({ source: kvLen, out: lens });
      publish({ record: lens.view([8], { dtype: "u8" }), ring, counter });
      event.record();
    });
    const seen = ring.view([slots, 2], { dtype: "i32" }).hostArray();
    const count = counter.hostArray();
    for (let i = 0; i < 10; i++) {
      graph.launch();
      event.wait();
      expect(count[0]).toBe(i + 1);
      expect([...seen.subarray((i % slots) * 2, (i % slots) * 2 + 2)]).toEqual([11 + i, 21 + i]);
    }
  });

  test("an event can be waited for while later work still runs", () => {
    using device = backend.open();
    using big = device.alloc([1 << 24], "bf16");
    using flag = device.alloc([1], "u32", { kind: "host" });
    using one = device.from(new Uint32Array([1]), [1], "u32");
    using event = device.stream.event();
    copy({ source: one, out: flag });
    event.record();
    for (let i = 0; i < 5; i++) add({ a: big, b: big, out: big });
    event.wait();
    expect(flag.hostArray()[0]).toBe(1);
  });

  test("timestamps rise, inside a graph too", () => {
    using device = backend.open();
    using x = device.alloc([1 << 20], "bf16");
    using times = device.alloc([3], "f64");
    using graph = device.stream.capture(() => {
      device.stream.timestamp(times, 0);
      add({ a: x, b: x, out: x });
      device.stream.timestamp(times, 1);
    });
    graph.launch();
    device.stream.timestamp(times, 2);
    const [start, middle, end] = readNumbers(times) as [number, number, number];
    expect(middle).toBeGreaterThan(start);
    expect(end).toBeGreaterThanOrEqual(middle);
    expect(() => device.stream.timestamp(times, 3)).toThrow(/element of an f64 tensor/);
    expect(() => device.stream.timestamp(x, 0)).toThrow(/element of an f64 tensor/);
  });
});

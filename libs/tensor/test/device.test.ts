// Devices and tensors: memory, views, lifetimes, and what bad input is told.

import { expect, test } from "bun:test";
import { join } from "node:path";
import { expectSame, forEachBackend, forEachKind, readNumbers, repeat } from "@magicdec/testkit";
import {
  add,
  copy,
  Device,
  deviceOptions,
  type DType,
  fromBf16,
  linear,
  allocWeight,
  liveHandles,
  rmsNorm,
  roundToBf16,
  StatusError,
  toBf16,
  type TypedArray,
} from "@magicdec/tensor";

forEachBackend((backend) => {
  test("info tells what the device is", () => {
    using device = backend.open({ threads: 1 });
    const { info, label } = device;
    expect(info.availableMemoryBytes).toBeGreaterThan(2 ** 20);
    expect(info.totalMemoryBytes).toBeGreaterThanOrEqual(info.availableMemoryBytes);
    expect(info.level).toBe(backend.level);
    if (backend.kind === "cuda") {
      expect(info.computeCapability).toBeGreaterThanOrEqual(80);
      expect(info.multiprocessors).toBeGreaterThan(0);
      expect(info.l2Bytes).toBeGreaterThan(0);
      expect(info.name).not.toBe("");
      expect(label).toBe(`cuda:0 ${info.name}`);
    } else {
      expect(info.threads).toBe(1);
      expect([4, 8, 16]).toContain(info.lanes);
      expect(label).toBe(backend.name);
    }
  });
});

test("a device by its name; auto is the GPU, or the CPU with the reason", () => {
  expect(deviceOptions("cuda:12")).toEqual({ backend: "cuda", device: 12 });
  expect(deviceOptions("cpu")).toEqual({ backend: "cpu", device: 0 });
  for (const name of ["cpu:1", "cuda:", "gpu", "cuda:x"]) {
    expect(() => deviceOptions(name as "cpu")).toThrow(/expected a device of auto, cpu, cuda/);
  }
  using device = Device.open({ ...deviceOptions("auto"), threads: 1 });
  if (device.backend === "cuda") expect(device.withoutGpu).toBeUndefined();
  else expect([device.backend, typeof device.withoutGpu]).toEqual(["cpu", "string"]);
});

forEachKind((backend) => {
  test("memory is zeroed, 64-byte aligned, and read back as written, for each dtype", () => {
    using device = backend.open();
    const data: Record<DType, TypedArray> = {
      f32: Float32Array.of(1.5, -2, Number.POSITIVE_INFINITY),
      bf16: Uint16Array.of(0x3f80, 0x4000, 0x8000),
      i32: Int32Array.of(-1, 2 ** 31 - 1, -(2 ** 31)),
      u32: Uint32Array.of(0, 2 ** 32 - 1, 7),
      u8: Uint8Array.of(0, 255, 3),
      f64: Float64Array.of(Math.PI, -0, 2 ** 53),
    };
    for (const [name, values] of Object.entries(data)) {
      const dtype = name as DType;
      using empty = device.alloc([5, 3], dtype);
      expect(empty.address % 64).toBe(0);
      expect(readNumbers(empty)).toEqual(repeat(0, 15));
      using tensor = device.from(values, [3], dtype);
      expect(tensor.read()).toEqual(values);
      empty.write(values, 6);
      expect(readNumbers(empty.rows(2, 3))).toEqual(readNumbers(tensor));
      empty.fill(0);
      expect(readNumbers(empty)).toEqual(repeat(0, 15));
    }
  });

  test("a write takes its data at the call", () => {
    using device = backend.open();
    using tensor = device.alloc([1 << 16], "i32");
    const data = new Int32Array(1 << 16);
    for (let i = 0; i < 20; i++) {
      data.fill(i);
      tensor.write(data);
    }
    data.fill(-1);
    expect(readNumbers(tensor.view([2]))).toEqual([19, 19]);
  });

  test("views and rows share memory, and lie inside their tensor", () => {
    using device = backend.open();
    using tensor = device.from(
      Int32Array.from({ length: 12 }, (_, i) => i),
      [3, 4],
      "i32",
    );
    expect(readNumbers(tensor.rows(1, 3))).toEqual([4, 5, 6, 7, 8, 9, 10, 11]);
    const tail = tensor.view([2, 2], { byteOffset: 32 });
    expect(readNumbers(tail)).toEqual([8, 9, 10, 11]);
    tail.write(Int32Array.of(-1), 3);
    expect(readNumbers(tensor).at(-1)).toBe(-1);
    expect(readNumbers(tensor.view([4], { byteOffset: 4, dtype: "u8" }))).toEqual([1, 0, 0, 0]);
    expect(tensor.rows(1, 1).elements).toBe(0);
    expect(() => tensor.view([13])).toThrow(
      /expected i32 \(13\) at a whole element inside 48 bytes/,
    );
    expect(() => tensor.view([1], { byteOffset: 2 })).toThrow(/whole element/);
    expect(() => tensor.rows(2, 4)).toThrow(/0 <= start <= end <= 3.*got \[2, 4\)/);
    expect(() => tensor.view([1, 1, 1, 1, 1])).toThrow(/1 to 4 whole numbers/);
  });

  test("host memory is live, and its array is emptied when it goes", () => {
    using device = backend.open();
    const host = device.alloc([4], "i32", { kind: "host" });
    const live = host.view([2], { byteOffset: 8 }).hostArray();
    using source = device.from(Int32Array.of(5, 6, 7, 8), [4], "i32");
    copy({ source, out: host });
    device.stream.sync();
    expect([...live]).toEqual([7, 8]);
    expect(() => source.hostArray()).toThrow(/expected memory of kind "host".*got kind "device"/);
    host.dispose();
    expect(live).toHaveLength(0);
  });

  test("use after dispose is an error that names the tensor; a second dispose is none", () => {
    using device = backend.open();
    using other = device.alloc([2, 3], "bf16");
    const tensor = device.alloc([2, 3], "bf16");
    const view = tensor.rows(0, 1);
    view.dispose();
    expect(tensor.read()).toHaveLength(6);
    tensor.dispose();
    tensor.dispose();
    const gone = /expected an open tensor bf16 \(2, 3\), got one that was disposed/;
    expect(() => tensor.read()).toThrow(gone);
    expect(() => view.read()).toThrow(gone);
    expect(() => tensor.write(new Uint16Array(1))).toThrow(gone);
    expect(() => add({ a: other, b: tensor, out: other })).toThrow(gone);
    const graph = device.stream.capture(() => add({ a: other, b: other, out: other }));
    graph.dispose();
    expect(() => graph.launch()).toThrow(/expected an open graph/);
  });

  test("closing a device frees what is open on it, and a closed device refuses", () => {
    const before = liveHandles();
    const device = backend.open();
    const tensor = device.alloc([8], "bf16", { kind: "host" });
    const event = device.stream.event();
    const live = tensor.hostArray();
    device.stream.capture(() => {
      add({ a: tensor, b: tensor, out: tensor });
      event.record();
    });
    expect(liveHandles()).toBe(before + 4);
    device.close();
    device.close();
    expect(liveHandles()).toBe(before);
    expect(live).toHaveLength(0);
    expect(() => device.alloc([1], "f32")).toThrow(StatusError);
    expect(() => tensor.read()).toThrow(/disposed/);
    tensor.dispose();
  });

  test("messages: what was expected, what came", () => {
    using device = backend.open();
    using x = device.alloc([2, 64], "bf16");
    using f32 = device.alloc([2, 64], "f32");
    using short = device.alloc([2, 63], "bf16");
    using gamma = device.alloc([64], "bf16");
    const weight = allocWeight(device, 32, 65);
    using _weightData = weight.data;
    const bad: [RegExp, () => unknown][] = [
      [
        /^write: expected a Float32Array .* got a Float64Array/,
        () => f32.write(new Float64Array(1)),
      ],
      [/^write: .*\[0, 128\).*got \[127, 129\)/, () => f32.write(new Float32Array(2), 127)],
      [/^fill: expected a byte/, () => x.fill(256)],
      [
        /^from: expected 6 elements for i32 \(2, 3\), got 5/,
        () => device.from(new Int32Array(5), [2, 3], "i32"),
      ],
      [/^alloc: .*whole numbers.*\(2, 1.5\)/, () => device.alloc([2, 1.5], "f32")],
      [/^alloc: expected at least one element/, () => device.alloc([0, 4], "f32")],
      [/threads from 1 to 1024/, () => Device.open({ threads: -1 })],
      [/^copy: expected runs inside/, () => copy({ source: x, out: short })],
      [
        /^md_rms_norm: .*(dtype|bf16|f32)/,
        () => rmsNorm({ x: f32, weight: gamma, out: x, eps: 1e-5 }),
      ],
      [/^md_rms_norm: .*6[34]/, () => rmsNorm({ x, weight: gamma, out: short, eps: 1e-5 })],
      [/^md_linear: .*6[45]/, () => linear({ x, weight, out: x })],
      [/^md_add: /, () => add({ a: x, b: short, out: x })],
    ];
    for (const [message, call] of bad) expect(call).toThrow(message);
    for (const [, call] of bad) expect(call).toThrow(StatusError);
  });
});

test("under MAGICDEC_DEBUG=leaks, what is collected without dispose is reported", async () => {
  const script = `
    import { Device } from "./src/index.ts";
    const device = Device.open({ backend: "null" });
    for (let i = 0; i < 100; i++) device.alloc([7, i + 1], "f32");
    device.alloc([9, 9], "f32").dispose();
    for (let i = 0; i < 10; i++) { Bun.gc(true); await Bun.sleep(5); }
    device.close();`;
  const child = Bun.spawn([process.execPath, "-e", script], {
    cwd: join(import.meta.dir, ".."),
    env: { ...Bun.env, MAGICDEC_DEBUG: "leaks" },
    stdout: "pipe",
    stderr: "pipe",
  });
  const [err] = await Promise.all([child.stderr.text(), child.stdout.text()]);
  expect(await child.exited, err).toBe(0);
  expect(err).toMatch(/tensor f32 \(7, \d+\) was collected without dispose\(\); made by/);
  expect(err).not.toContain("tensor f32 (9, 9)");
});

test("bf16 rounds to nearest even and keeps NaN and infinity", () => {
  const x = Float32Array.of(1, 1 + 2 ** -8, 1 + 3 * 2 ** -8, 1 + 2 ** -8 + 2 ** -20, 3.4e38);
  const odd = Float32Array.of(Number.NaN, Number.NEGATIVE_INFINITY, -0);
  expect([...toBf16(x)]).toEqual([0x3f80, 0x3f80, 0x3f82, 0x3f81, 0x7f80]);
  expectSame(roundToBf16(odd), odd, "NaN, -inf and -0");
  const all = Uint16Array.from({ length: 2 ** 16 }, (_, i) => i);
  const back = toBf16(fromBf16(all));
  const isNaN = (bits: number) => (bits & 0x7f80) === 0x7f80 && (bits & 0x7f) !== 0;
  all.forEach((bits, i) => {
    expect(back[i] === bits || (isNaN(bits) && isNaN(back[i] as number))).toBe(true);
  });
});

// Every function of the ABI, once, on the null backend: it is reachable through this package,
// accepts what it documents, and leaves a trace with its name where it enqueues.

import { expect, test } from "bun:test";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { symbols } from "@magicdec/abi";
import {
  accept,
  add,
  allocKvCache,
  allocWeight,
  attention,
  attentionWorkspaceBytes,
  cast,
  copy,
  Device,
  embedding,
  gatherKv,
  keepQueries,
  linear,
  liveHandles,
  packSamplingParams,
  positions,
  publish,
  rmsNorm,
  ropeAppend,
  ropeTable,
  sample,
  siluMul,
  snapScore,
  snapSelect,
  weightPack,
} from "@magicdec/tensor";

const greedy = { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 1 };

/** Opens a null device whose functions note that they were called. */
function openNoted(called: Set<string>): Device {
  const device = Device.open({ backend: "null" });
  const noted = new Proxy(device.symbols, {
    get(target, name: string) {
      called.add(name);
      return Reflect.get(target, name);
    },
  });
  Object.defineProperty(device, "symbols", { value: noted });
  return device;
}

/** Maps a safetensors file of one tensor, and closes it. */
async function openAndClose(device: Device): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "magicdec-null-"));
  try {
    const path = join(folder, "one.safetensors");
    const tensor = { dtype: "BF16", shape: [2, 2], data_offsets: [0, 8] };
    const header = new TextEncoder().encode(JSON.stringify({ x: tensor }));
    const size = new Uint8Array(new BigUint64Array([BigInt(header.length)]).buffer);
    await Bun.write(path, new Blob([size, header, new Uint8Array(8)]));
    device.openFile(path, header.length, header).dispose();
    const other = new TextEncoder().encode(JSON.stringify({ y: tensor }));
    expect(() => device.openFile(path, other.length, other)).toThrow(/header/);
  } finally {
    rmSync(folder, { recursive: true });
  }
}

test("every function is called, and every op is traced", async () => {
  const before = liveHandles();
  const called = new Set<string>();
  const device = openNoted(called);
  const f = (...shape: number[]) => device.alloc(shape, "f32");
  const b = (...shape: number[]) => device.alloc(shape, "bf16");
  const i = (...shape: number[]) => device.alloc(shape, "i32");
  const geometry = { layers: 2, pages: 6, pageSize: 64, kvHeads: 1, headDim: 64 };
  const cache = allocKvCache(device, geometry);
  const compact = allocKvCache(device, geometry);
  const weight = allocWeight(device, 128, 64);
  const blockTable = i(2, 3);
  const [rows, heads] = [4, 2];
  const q = b(rows, heads, 64);
  const scale = 0.125;
  const attentionOp = { q, out: b(rows, heads, 64), qStart: i(3), kvLen: i(2), blockTable, cache };
  const workspaceBytes = attentionWorkspaceBytes({ ...attentionOp, layer: 0, scale });
  const workspace = device.alloc([workspaceBytes + 64], "u8");
  const params = device.from(
    packSamplingParams([0, 1].map((sequence) => ({ ...greedy, sequence }))),
    [2, 8],
    "u32",
  );
  device.trace();
  const calls: Record<string, () => void> = {
    md_embedding: () => embedding({ table: b(9, 64), ids: i(2, 2), out: b(rows, 64) }),
    md_rms_norm: () => rmsNorm({ x: b(rows, 64), weight: b(64), out: b(rows, 64), eps: 1e-5 }),
    md_linear: () => linear({ x: b(rows, 64), weight, out: b(rows, 128) }),
    md_weight_pack: () => weightPack({ source: b(128, 64), weight }),
    md_rope_table: () => ropeTable({ positions: i(rows), invFreq: f(32), out: f(rows, 64) }),
    md_rope_append: () =>
      ropeAppend({
        qkv: b(rows, 256),
        rope: f(rows, 64),
        q,
        rowSeq: i(rows),
        positions: i(rows),
        blockTable,
        cache,
        layer: 1,
      }),
    md_attention: () => attention({ ...attentionOp, workspace, layer: 0, scale }),
    md_silu_mul: () => siluMul({ gateUp: b(rows, 128), out: b(rows, 64) }),
    md_add: () => add({ a: q, b: q, out: q }),
    md_cast: () => cast({ source: b(rows, 64), out: f(rows, 64) }),
    md_copy: () => copy({ source: q, out: b(rows, heads, 64) }),
    md_positions: () => positions({ lens: i(2), positions: i(rows), kvLen: i(2), offset: 0 }),
    md_keep_queries: () =>
      keepQueries({ q, rowSeq: i(rows), positions: i(rows), out: b(2, 16, heads, 64) }),
    md_snap_score: () =>
      snapScore({
        queries: b(2, 16, heads, 64),
        lens: i(2),
        blockTable,
        scores: f(2, 1, 192),
        cache,
        layer: 0,
        window: 16,
        scale,
      }),
    md_snap_select: () =>
      snapSelect({
        scores: f(2, 1, 192),
        lens: i(2),
        indices: i(2, 1, 48),
        prefixLen: i(2),
        tailStart: i(2),
        pooled: f(2, 1, 192),
        budget: 64,
        window: 16,
        kernel: 5,
        pooling: "average",
      }),
    md_gather_kv: () =>
      gatherKv({
        indices: i(2, 1, 48),
        prefixLen: i(2),
        sourceTable: blockTable,
        outTable: blockTable,
        source: cache,
        out: compact,
        sourceLayer: 0,
        outLayer: 1,
      }),
    md_sample: () => sample({ logits: f(rows, 9), params, positions: i(rows), out: i(2, 2) }),
    md_accept: () =>
      accept({
        chain: i(2, 3),
        targetTokens: i(2, 2),
        params,
        active: i(2),
        lens: i(2),
        count: i(2),
        out: i(2, 2),
        rule: "match",
      }),
    md_publish: () =>
      publish({
        record: device.alloc([16], "u8"),
        ring: device.alloc([4, 16], "u8", { kind: "host" }),
        counter: device.alloc([1], "u32", { kind: "host" }),
      }),
  };
  for (const [name, call] of Object.entries(calls)) {
    call();
    const trace = device.trace().join("\n");
    expect(trace).toContain(name.slice("md_".length));
  }

  expect(device.info.threads).toBeGreaterThan(0);
  expect(() => device.probe("read_bandwidth", 1)).toThrow(/null backend/);
  expect(q.read()).toHaveLength(rows * heads * 64);
  q.fill(0);
  const times = device.alloc([1], "f64");
  const event = device.stream.event();
  const graph = device.stream.capture(() => {
    event.record();
    device.stream.timestamp(times, 0);
  });
  graph.launch();
  event.wait();
  device.stream.sync();
  graph.dispose();
  event.dispose();
  await openAndClose(device);
  device.close();
  expect(liveHandles()).toBe(before);

  const elsewhere = ["md_abi_version", "md_abi_hash_low", "md_abi_hash_high"];
  const others = [...elsewhere, "md_last_error", "md_context_create", "md_live_handles"];
  const missing = Object.keys(symbols).filter((name) => !called.has(name));
  expect(missing.toSorted()).toEqual(others.toSorted());
});

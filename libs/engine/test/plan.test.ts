import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type ModelConfig, presetConfig } from "@magicdec/model";
import { Device, type DeviceInfo, liveHandles, StatusError } from "@magicdec/tensor";
import { bestCpu, forEachKind, Random, testSeed, writeTinyModel } from "@magicdec/testkit";
import { MemoryPlanError, planText, Runner, type SpeculationConfig } from "../src/index.ts";
import { type PlanInput, planMemory } from "../src/plan.ts";
import { prefillChunks, standardGraphSizes, standardPageSize } from "../src/standards.ts";

const gib = 2 ** 30;
const config = presetConfig("llama-3.1-8b") as ModelConfig;

/** A CPU that says it is a GPU with so much memory: all that a plan asks of one. */
function gpu(device: Device, total: number, available: number): Device {
  const info: Partial<DeviceInfo> = { totalMemoryBytes: total, availableMemoryBytes: available };
  return Object.create(device, {
    backend: { value: "cuda" },
    info: { value: info },
  }) as Device;
}

/** 32 x 16032 tokens and 96 new ones, as a GPU would page them. */
function input(device: Device, utilization = 0.9): PlanInput {
  const { layers, kvHeads, headDim } = config;
  const pagesPerSequence = Math.ceil((16032 + 96 + 24) / 256);
  const kv = {
    layers,
    kvHeads,
    headDim,
    pageSize: 256,
    pages: 32 * pagesPerSequence,
    batch: 32,
    maxPagesPerSequence: pagesPerSequence,
    parking: true,
  };
  const policy = { budget: 513, sinks: 0, window: 32, reselectEvery: 1 };
  const sizes = { batch: 32, maxRows: 8192, maxGamma: 7 };
  return { device, models: [{ config, kv }], ...sizes, policy, graphs: true, utilization };
}

describe("the plan of a GPU", () => {
  test("Llama-3.1-8B at 32 x 16032 fits 141 GB, and every part is named", () => {
    using cpu = bestCpu().open();
    const plan = planMemory(input(gpu(cpu, 140 * gib, 139 * gib)));
    const names = plan.parts.map(({ name }) => name).join(", ");
    expect(names).toBe("weights, KV, activations, logits, kept queries, draft caches, graphs");
    const sizes = Object.fromEntries(plan.parts.map(({ name, bytes }) => [name, bytes / gib]));
    expect(sizes["weights"]).toBeWithin(14.9, 15.1);
    expect(sizes["KV"]).toBeWithin(63.5, 65);
    expect(plan.totalBytes / gib).toBeWithin(80, 90);
    expect(plan.availableBytes / gib).toBeCloseTo(125, 6);
    expect(planText(plan)).toMatch(/^8\d\.\d GiB = weights 15\.0 GiB \+ KV 6\d\.\d GiB \+ /);
  });

  test("80 GB are refused with the arithmetic; the utilization bounds what may be taken", () => {
    using cpu = bestCpu().open();
    const refusal = (total: number, available: number, utilization?: number) => {
      try {
        planMemory(input(gpu(cpu, total, available), utilization));
      } catch (error) {
        if (error instanceof MemoryPlanError) return error.message;
        throw error;
      }
      return "";
    };
    expect(refusal(79 * gib, 78.5 * gib)).toMatch(
      /^memory: expected at most 70\.6 GiB \(the GPU has 78\.5 GiB free of 79\.0 GiB, and --gpu-memory-utilization 0\.9 leaves 7\.9 GiB of it alone\), got 8\d\.\d GiB = weights .*; lower --B, .* or raise --gpu-memory-utilization$/,
    );
    expect(refusal(140 * gib, 139 * gib, 0.5)).toContain("expected at most 69.0 GiB");
    expect(refusal(140 * gib, 90 * gib, 1)).toBe("");
    expect(refusal(140 * gib, 60 * gib, 1)).toContain("expected at most 60.0 GiB");
  });

  test("what suits a device", () => {
    const on = (backend: Device["backend"]) => ({ backend });
    expect([standardPageSize(on("cpu")), standardPageSize(on("cuda"))]).toEqual([512, 256]);
    expect([prefillChunks(on("cpu"))[0], prefillChunks(on("cuda"))[0]]).toEqual([512, 8192]);
    expect(standardGraphSizes(on("cpu"))).toBe("exact");
    expect(standardGraphSizes(on("cuda"))).toBe("rounded");
  });
});

const plain: SpeculationConfig = {
  method: "off",
  cache: "full",
  gamma: 0,
  budget: 64,
  sinks: 4,
  window: 16,
  reselectEvery: 16,
  rule: "match",
};
const greedy = { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 1 };

forEachKind(({ device }) => {
  let folder = "";
  let target = "";

  beforeAll(async () => {
    folder = await mkdtemp(join(tmpdir(), "magicdec-plan-"));
    target = await writeTinyModel(folder, { seed: 4, vocabSize: 320, heads: 4, kvHeads: 2 });
  });

  afterAll(async () => {
    await rm(folder, { recursive: true, force: true });
  });

  const load = () => Runner.load({ target, device, batch: 3, maxTokens: 900, window: 16 });

  test("a skipped prefill: noise in the caches, the same for every method", async () => {
    using runner = await load();
    const lengths = [700, 64, 333];
    const decode = async (spec: SpeculationConfig) =>
      (await runner.decode(spec, greedy, { maxNewTokens: 30 })).tokens.map((one) => [...one]);
    runner.skipPrefill(lengths, { seed: 5 });
    const want = await decode(plain);
    expect(want.flat().every((token) => token >= 0 && token < 320)).toBeTrue();
    for (const cache of ["streaming", "snapkv", "full"] as const) {
      expect(await decode({ ...plain, method: "self", cache, gamma: 4 })).toEqual(want);
    }
    runner.skipPrefill(lengths, { seed: 6 });
    expect(await decode(plain)).not.toEqual(want);
  });

  test("the ops of an iteration, timed one by one", async () => {
    using runner = await load();
    const random = new Random(testSeed);
    await runner.prefill([Int32Array.from({ length: 300 }, () => random.integer(0, 319))]);
    const before = liveHandles();
    const spec: SpeculationConfig = { ...plain, method: "self", cache: "streaming", gamma: 2 };
    const { ops, msClock } = runner.profile(spec, greedy);
    expect(liveHandles()).toBe(before);
    expect(msClock).toBeGreaterThan(0);
    const layers = 2;
    const count = (op: string, phase: number) =>
      ops.filter((one) => one.op === op && one.phase === phase).length;
    expect([count("md_attention", 1), count("md_attention", 2)]).toEqual([2 * layers, layers]);
    expect([count("md_linear", 2), count("md_sample", 1), count("md_accept", 3)]).toEqual([
      4 * layers + 1,
      2,
      1,
    ]);
    expect(ops.every(({ ms }) => ms >= 0)).toBeTrue();
    expect(ops.reduce((sum, { ms }) => sum + ms, 0)).toBeGreaterThan(0);
    // Profiling leaves nothing behind that a run would see.
    const options = { maxNewTokens: 12 };
    expect((await runner.decode(spec, greedy, options)).tokens).toEqual(
      (await runner.decode(plain, greedy, options)).tokens,
    );
  });

  test("a device that fails in the middle ends the run with its message, and can be closed", async () => {
    const before = liveHandles();
    const runner = await load();
    await runner.prefill([new Int32Array(100).fill(7)]);
    const real = runner.device.symbols;
    let launches = 0;
    const lost = () => (++launches > 3 ? 9 : 0);
    runner.device.symbols = {
      ...real,
      md_graph_launch: (graph: number) => lost() || real.md_graph_launch(graph),
      md_memory_free: (memory: number) => (launches > 3 ? 9 : real.md_memory_free(memory)),
    };
    const run = runner.decode(plain, greedy, { maxNewTokens: 40 });
    expect(run).rejects.toThrow(StatusError);
    await run.catch(() => {});
    expect(launches).toBe(4);
    expect(() => runner.close()).toThrow();
    expect(liveHandles()).toBe(before);
    runner.device.close();
  });
});

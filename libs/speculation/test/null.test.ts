import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { cachePolicies, type CachePolicyName, PagedKv, QueryRing } from "@magicdec/cache";
import { Model, Workspace } from "@magicdec/model";
import { Device, liveHandles, singleRank } from "@magicdec/tensor";
import { writeTinyModel } from "@magicdec/testkit";
import { BatchState, ChainDraft, Iteration, RecordBuffers, Verifier } from "../src/index.ts";

/** What TypeScript decides, on the backend that records and computes nothing. */

const batch = 3;
const gamma = 2;
const layers = 2;
let folder = "";

beforeAll(async () => {
  folder = await writeTinyModel(await mkdtemp(join(tmpdir(), "magicdec-null-")), {
    seed: 3,
    layers,
  });
});

afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

/** One launch of an iteration; returns the ops it enqueued, and those of a second launch. */
async function trace(
  policyName: CachePolicyName,
  options: { ownCache?: boolean; graphs?: boolean; gamma?: number } = {},
): Promise<{ first: string[]; second: string[] }> {
  const { ownCache = false, graphs = false } = options;
  const chain = options.gamma ?? gamma;
  using device = Device.open({ backend: "null" });
  using model = await Model.load(device, singleRank, folder);
  const { kvHeads, headDim, heads, vocabSize } = model.config;
  const kv = { layers, kvHeads, headDim, pageSize: 64, pages: 12, batch, maxPagesPerSequence: 4 };
  using cache = new PagedKv(device, kv);
  using workspace = new Workspace(device, model.config, 32, cache);
  using queries = new QueryRing(device, { layers, batch, heads, headDim, window: 8, maxGamma: 4 });
  using logits = device.alloc([32, vocabSize], "f32");
  using state = new BatchState(device, batch, chain);
  using buffers = new RecordBuffers(device, batch, chain);
  using policy = cachePolicies[policyName].create({
    device,
    cache,
    queries,
    batch,
    budget: 32,
    sinks: 4,
    window: 8,
    reselectEvery: 16,
  });
  policy.begin();
  state.begin(batch);
  const shared = { device, model, workspace, cache, state, rule: "match" as const, logits };
  using draft = new ChainDraft({ ...shared, policy, ownCache });
  const { counts, emitted } = buffers;
  using verifier = new Verifier({ ...shared, counts, emitted });
  using iteration = new Iteration({
    device,
    state,
    draft: chain === 0 ? undefined : draft,
    verifier,
    buffers,
    graphs: graphs ? "exact" : "none",
  });
  device.trace();
  iteration.launch(batch);
  const first = device.trace();
  iteration.launch(batch);
  return { first, second: device.trace() };
}

const opsOf = (lines: readonly string[]) =>
  lines.map((line) => line.replace(/^graph=\d+ /, "").split(" ")[0] as string);

const layerOps = [
  "rms_norm",
  "linear",
  "rope_append",
  "attention",
  "linear",
  "rms_norm",
  "linear",
  "linear",
];

function forwardOps(extra: { sink?: boolean; picked?: boolean } = {}): string[] {
  const ropes = extra.sink === true ? ["rope_table", "rope_table"] : ["rope_table"];
  const pick = extra.picked === true ? ["embedding"] : [];
  const body = Array.from({ length: layers }, () => layerOps).flat();
  return ["embedding", ...ropes, ...body, ...pick, "rms_norm", "linear"];
}

const decision = ["timestamp", "sample", "accept", "timestamp", "publish"];

describe("an iteration, op by op", () => {
  test("plain decoding is one forward, a draw and the bookkeeping", async () => {
    const { first } = await trace("full", { gamma: 0 });
    const want = ["timestamp", "timestamp", "positions", ...forwardOps(), ...decision];
    expect(opsOf(first)).toEqual(want);
  });

  test("self-speculation over a streaming view: gamma one-row forwards, one verify", async () => {
    const { first } = await trace("streaming");
    const step = ["positions", ...forwardOps({ sink: true }), "sample"];
    const want = ["timestamp", ...step, ...step, "timestamp", "positions", ...forwardOps()];
    expect(opsOf(first)).toEqual([...want, ...decision]);
    const attention = first.filter((line) => line.startsWith("attention"));
    expect(attention).toHaveLength(3 * layers);
    expect(attention[0]).toContain("sinks=4");
    expect(attention[0]).toContain("window=28");
    expect(attention.at(-1)).toContain("window=0");
  });

  test("a draft model's first step takes the token before the current one again", async () => {
    const { first } = await trace("full", { ownCache: true });
    const catchUp = ["positions", "positions", ...forwardOps({ picked: true }), "sample"];
    const step = ["positions", ...forwardOps(), "sample"];
    const want = ["timestamp", ...catchUp, ...step, "timestamp", "positions", ...forwardOps()];
    expect(opsOf(first)).toEqual([...want, ...decision]);
  });

  for (const policy of ["full", "streaming", "snapkv"] as const) {
    test(`${policy}: captured once, then a launch is one call that allocates, waits and reads nothing`, async () => {
      const eager = await trace(policy);
      const captured = await trace(policy, { graphs: true });
      const recorded = captured.first.filter((line) => /^graph=\d+ /.test(line));
      expect(opsOf(recorded)).toEqual(opsOf(eager.first));
      for (const line of [...eager.second, ...captured.first]) {
        expect(line).not.toMatch(/\b(alloc|free|memory_read|stream_sync|event_wait)\b/);
      }
      expect(captured.second).toHaveLength(1);
      expect(captured.second[0]).toContain("graph_launch");
    });
  }

  test("nothing is left open", async () => {
    const before = liveHandles();
    await trace("snapkv", { graphs: true });
    expect(liveHandles()).toBe(before);
  });
});

import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { liveHandles } from "@magicdec/tensor";
import { forEachKind, Random, seedNote, testSeed, writeTinyModel } from "@magicdec/testkit";
import { type DecodeResult, Runner, type SpeculationConfig } from "../src/index.ts";

/** Graphs and device state that one decode run leaves to the next: the same tokens, and nothing that grows. */

const vocabSize = 320;
const greedy = { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 5 };
const sampled = { temperature: 0.8, topK: 0, topP: 0.95, minP: 0, seed: 9 };
const snapkv: SpeculationConfig = {
  method: "self",
  cache: "snapkv",
  gamma: 3,
  budget: 40,
  sinks: 4,
  window: 16,
  reselectEvery: 12,
  rule: "rejection",
};
const specs: SpeculationConfig[] = [
  { ...snapkv, method: "off", gamma: 0 },
  snapkv,
  { ...snapkv, rule: "match", gamma: 5 },
  { ...snapkv, cache: "streaming" },
  { ...snapkv, method: "model" },
];
let folder = "";
let target = "";
let draft = "";

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "magicdec-reuse-"));
  target = await writeTinyModel(join(folder, "target"), { seed: 1, vocabSize });
  draft = await writeTinyModel(join(folder, "draft"), { seed: 2, vocabSize, layers: 1 });
});

afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

function prompts(lengths: readonly number[], stream: number): Int32Array[] {
  const random = new Random(testSeed, stream);
  return lengths.map((length) => Int32Array.from({ length }, () => random.u32() % vocabSize));
}

const tokensOf = ({ tokens }: DecodeResult) => tokens.map((one) => Array.from(one));

forEachKind(({ device }) => {
  const load = (options: { graphs?: boolean; graphSizes?: "exact" | "rounded" } = {}) =>
    Runner.load({ target, draft, device, batch: 6, maxTokens: 800, window: 16, ...options });

  test("a run over kept graphs returns what one of a new runner returns, whatever ran before", async () => {
    using kept = await load();
    const works = [
      { lengths: [100, 30, 71, 20, 9, 64], limits: [20, 5, 33, 1, 12, 28] },
      { lengths: [50], limits: [25] },
      { lengths: [77, 200, 3, 5], limits: [9, 40, 2, 17] },
      { lengths: [100, 30, 71, 20, 9, 64], limits: [20, 5, 33, 1, 12, 28] },
    ];
    for (const [i, { lengths, limits }] of works.entries()) {
      using fresh = await load({ graphs: false });
      for (const runner of [kept, fresh]) {
        await runner.prefill(prompts(lengths, i), { needDraft: true });
      }
      for (const spec of specs) {
        for (const sampling of [greedy, sampled, greedy]) {
          const options = { maxNewTokens: limits };
          const want = tokensOf(await fresh.decode(spec, sampling, options));
          const got = tokensOf(await kept.decode(spec, sampling, options));
          expect(got, `work ${i}, ${JSON.stringify(spec)} ${seedNote()}`).toEqual(want);
        }
      }
    }
  }, 60_000);

  test("rounded batch sizes: fewer graphs, the same tokens", async () => {
    const limits = [6, 40, 17, 11, 30, 24];
    const texts = prompts([90, 41, 130, 7, 64, 33], 20);
    const run = async (graphSizes: "exact" | "rounded") => {
      using runner = await load({ graphSizes });
      await runner.prefill(texts, { needDraft: true });
      const before = liveHandles();
      const results: number[][][] = [];
      for (const spec of specs) {
        results.push(tokensOf(await runner.decode(spec, sampled, { maxNewTokens: limits })));
      }
      return { results, handles: liveHandles() - before };
    };
    const exact = await run("exact");
    const rounded = await run("rounded");
    expect(rounded.results, seedNote()).toEqual(exact.results);
    expect(rounded.handles).toBeLessThan(exact.handles);
  }, 30_000);

  test("repetitions open nothing, many configurations stay bounded, closing frees all", async () => {
    const before = liveHandles();
    const runner = await load();
    await runner.prefill(prompts([60, 20], 30), { needDraft: true });
    const repeat = () => runner.decode(snapkv, sampled, { maxNewTokens: 12 });
    await repeat();
    const after = liveHandles();
    for (let i = 0; i < 5; i++) await repeat();
    expect(liveHandles()).toBe(after);

    let most = 0;
    for (let round = 0; round < 3; round++) {
      for (let budget = 20; budget < 32; budget++) {
        const spec = { ...snapkv, budget, gamma: 1 + (budget % 4) };
        await runner.decode(spec, sampled, { maxNewTokens: 10 });
      }
      if (round > 0) expect(liveHandles()).toBe(most);
      most = liveHandles();
    }
    runner.close();
    expect(liveHandles()).toBe(before);
  }, 30_000);

  test("a run that fails leaves the runner as able as it was", async () => {
    using runner = await load();
    await runner.prefill(prompts([60, 20], 31), { needDraft: true });
    const decode = (onTokens?: () => void) =>
      runner.decode(snapkv, greedy, { maxNewTokens: 30, onTokens });
    const want = tokensOf(await decode());
    let calls = 0;
    const failing = decode(() => {
      if (++calls === 5) throw new Error("from the consumer");
    });
    expect(failing).rejects.toThrow("from the consumer");
    await failing.catch(() => {});
    expect(tokensOf(await decode())).toEqual(want);
  });
});

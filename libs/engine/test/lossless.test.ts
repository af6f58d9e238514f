import { afterAll, beforeAll, describe, expect, test } from "bun:test";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { Random, seedNote, testSeed, writeTinyModel } from "@magicdec/testkit";
import { Runner, type SamplingConfig, type SpeculationConfig } from "../src/index.ts";

/**
 * Speculation must return the tokens of plain decoding bit for bit: greedy, and sampled under the rule "match". The models are random, so acceptance is
 * anything between none and all, which is what exercises rollback.
 */

const vocabSize = 320;
const newTokens = 40;
let folder = "";
let target = "";
let draft = "";

beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), "magicdec-lossless-"));
  target = await writeTinyModel(join(folder, "target"), {
    seed: 1,
    vocabSize,
    heads: 4,
    kvHeads: 2,
  });
  draft = await writeTinyModel(join(folder, "draft"), { seed: 2, vocabSize, layers: 1 });
});

afterAll(async () => {
  await rm(folder, { recursive: true, force: true });
});

const greedy: SamplingConfig = { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 5 };
const sampled: SamplingConfig = { temperature: 0.7, topK: 50, topP: 0.95, minP: 0.01, seed: 11 };
const plain: SpeculationConfig = {
  method: "off",
  cache: "full",
  gamma: 0,
  budget: 0,
  sinks: 0,
  window: 16,
  reselectEvery: 16,
  rule: "match",
};

function prompts(lengths: readonly number[], stream: number): Int32Array[] {
  const random = new Random(testSeed, stream);
  return lengths.map((length) => Int32Array.from({ length }, () => random.u32() % vocabSize));
}

async function withRunner<T>(
  options: { batch: number; threads?: number; graphs?: boolean; pageSize?: number },
  use: (runner: Runner) => Promise<T>,
): Promise<T> {
  using runner = await Runner.load({ target, draft, maxTokens: 1200, window: 16, ...options });
  return await use(runner);
}

function variants(gamma: number): SpeculationConfig[] {
  const common = { ...plain, gamma, rule: "match" as const };
  return [
    { ...common, method: "self", cache: "streaming", budget: 48, sinks: 4 },
    { ...common, method: "self", cache: "streaming", budget: 3, sinks: 1 },
    { ...common, method: "self", cache: "snapkv", budget: 64 },
    { ...common, method: "self", cache: "snapkv", budget: 33, window: 7, reselectEvery: 5 },
    { ...common, method: "self", cache: "full" },
    { ...common, method: "model", cache: "full" },
    { ...common, method: "model", cache: "streaming", budget: 32, sinks: 4 },
    { ...common, method: "model", cache: "snapkv", budget: 40, reselectEvery: 9 },
  ];
}

const name = (spec: SpeculationConfig) =>
  `${spec.method} ${spec.cache} gamma ${spec.gamma} budget ${spec.budget}`;

async function expectIdentical(
  runner: Runner,
  texts: Int32Array[],
  specs: readonly SpeculationConfig[],
  samplings: readonly SamplingConfig[],
  maxNewTokens: number | number[] = newTokens,
): Promise<void> {
  await runner.prefill(texts, { needDraft: true });
  for (const sampling of samplings) {
    const want = await runner.decode(plain, sampling, { maxNewTokens });
    for (const spec of specs) {
      const got = await runner.decode(spec, sampling, { maxNewTokens });
      for (const [sequence, tokens] of want.tokens.entries()) {
        const where = `${name(spec)}, temperature ${sampling.temperature}, sequence ${sequence}`;
        expect(Array.from(got.tokens[sequence] ?? []), `${where}; ${seedNote()}`).toEqual(
          Array.from(tokens),
        );
      }
    }
  }
}

describe("speculation returns the tokens of plain decoding", () => {
  for (const gamma of [1, 2, 3, 4, 5, 7, 8, 11, 16]) {
    test(`gamma ${gamma}, every method and cache, greedy and sampled`, async () => {
      await withRunner({ batch: 3 }, async (runner) => {
        const texts = prompts([300, 77, 130], gamma);
        await expectIdentical(runner, texts, variants(gamma), [greedy, sampled]);
      });
    }, 60_000);
  }

  test("ragged batches of 1 to 16, sequences that leave at different times", async () => {
    for (const batch of [1, 2, 5, 16]) {
      await withRunner({ batch }, async (runner) => {
        const random = new Random(testSeed, 100 + batch);
        const lengths = Array.from({ length: batch }, () => 1 + (random.u32() % 400));
        const limits = Array.from({ length: batch }, () => 1 + (random.u32() % 60));
        const specs = [variants(4)[0], variants(3)[3], variants(2)[6]] as SpeculationConfig[];
        await expectIdentical(runner, prompts(lengths, batch), specs, [greedy, sampled], limits);
      });
    }
  }, 60_000);

  test("the tokens depend neither on threads, graphs, page size nor on the rest of the batch", async () => {
    const texts = prompts([257, 64, 511, 1], 7);
    const spec = variants(5)[0] as SpeculationConfig;
    const decode = (
      options: Parameters<typeof withRunner>[0],
      mine: Int32Array[],
      keys: number[],
    ) =>
      withRunner(options, async (runner) => {
        await runner.prefill(mine);
        const settings = { maxNewTokens: newTokens, sequenceKeys: keys };
        const result = await runner.decode(spec, sampled, settings);
        return result.tokens.map((tokens) => Array.from(tokens));
      });
    const want = await decode({ batch: 4 }, texts, [0, 1, 2, 3]);
    expect(await decode({ batch: 4, threads: 1 }, texts, [0, 1, 2, 3])).toEqual(want);
    expect(await decode({ batch: 4, threads: 3 }, texts, [0, 1, 2, 3])).toEqual(want);
    expect(await decode({ batch: 4, graphs: false }, texts, [0, 1, 2, 3])).toEqual(want);
    expect(await decode({ batch: 4, pageSize: 256 }, texts, [0, 1, 2, 3])).toEqual(want);
    for (const [i, text] of texts.entries()) {
      expect(await decode({ batch: 1 }, [text], [i])).toEqual([want[i] as number[]]);
    }
  }, 60_000);

  test("a longer generation: the window slides, pages grow, SnapKV selects again", async () => {
    await withRunner({ batch: 2 }, async (runner) => {
      await expectIdentical(runner, prompts([200, 90], 9), variants(6), [greedy], 500);
    });
  }, 60_000);

  test("rejection with temperature 0 is greedy", async () => {
    await withRunner({ batch: 2 }, async (runner) => {
      const specs = variants(4).map((spec) => ({ ...spec, rule: "rejection" as const }));
      await expectIdentical(runner, prompts([150, 33], 10), specs, [greedy]);
    });
  }, 60_000);

  test("a draft that reads everything with the target's weights is never wrong", async () => {
    // Tokens alone would not show a draft cache that rolls back wrongly: only its acceptance falls.
    using runner = await Runner.load({
      target,
      draft: target,
      batch: 3,
      maxTokens: 1200,
      window: 16,
    });
    await runner.prefill(prompts([300, 77, 130], 11), { needDraft: true });
    const everything = { budget: 1000, sinks: 4, gamma: 4 };
    for (const method of ["self", "model"] as const) {
      for (const cache of ["full", "streaming", "snapkv"] as const) {
        const spec = { ...plain, ...everything, method, cache };
        for (const sampling of [greedy, sampled]) {
          const { stats } = await runner.decode(spec, sampling, { maxNewTokens: 60 });
          expect(stats.accepted, `${name(spec)}; ${seedNote()}`).toBe(stats.drafted);
        }
      }
    }
  }, 60_000);
});

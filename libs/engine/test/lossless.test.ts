import { afterAll, beforeAll, expect, test } from "bun:test";
import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type ModelConfig, presetConfig } from "@magicdec/model";
import {
  forEachKind,
  Random,
  seedNote,
  type TestBackend,
  testSeed,
  writeTinyModel,
} from "@magicdec/testkit";
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

interface Settings {
  batch: number;
  threads?: number | undefined;
  graphs?: boolean;
  pageSize?: number;
}

type WithRunner = <T>(options: Settings, use: (runner: Runner) => Promise<T>) => Promise<T>;

function runnersOn({ device }: TestBackend): WithRunner {
  return async (options, use) => {
    const common = { target, draft, device, maxTokens: 1200, window: 16 };
    using runner = await Runner.load({ ...common, ...options });
    return await use(runner);
  };
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

forEachKind((backend) => {
  const withRunner = runnersOn(backend);

  for (const gamma of [1, 2, 3, 4, 5, 7, 8, 11, 16]) {
    test(`gamma ${gamma}, every method and cache, greedy and sampled`, async () => {
      await withRunner({ batch: 3 }, async (runner) => {
        const texts = prompts([300, 77, 130], gamma);
        await expectIdentical(runner, texts, variants(gamma), [greedy, sampled]);
      });
    }, 60_000);
  }

  test("ragged batches of 1 to 16, sequences that leave at different times", async () => {
    for (const batch of backend.kind === "cuda" ? [1, 2, 5, 16, 64] : [1, 2, 5, 16]) {
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
    const decode = (options: Settings, mine: Int32Array[], keys: number[]) =>
      withRunner(options, async (runner) => {
        await runner.prefill(mine);
        const settings = { maxNewTokens: newTokens, sequenceKeys: keys };
        const result = await runner.decode(spec, sampled, settings);
        return result.tokens.map((tokens) => Array.from(tokens));
      });
    const want = await decode({ batch: 4 }, texts, [0, 1, 2, 3]);
    for (const threads of backend.threadCounts) {
      expect(await decode({ batch: 4, threads }, texts, [0, 1, 2, 3])).toEqual(want);
    }
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
      device: backend.device,
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
          // A draft's first step computes the prompt's last token again, and a GPU's prefill may differ from its decoding in the last bits: seldom a draw.
          const share = method === "model" && backend.kind === "cuda" ? 0.95 : 1;
          const least = share * stats.drafted;
          expect(stats.accepted, `${name(spec)}; ${seedNote()}`).toBeGreaterThanOrEqual(least);
        }
      }
    }
  }, 60_000);

  // The shapes that matter on a GPU take a CPU too long.
  if (backend.kind !== "cuda") return;

  test("seeded weights in the shapes of Llama-3.2-1B, every policy, batches that end raggedly", async () => {
    const config = presetConfig("llama-3.2-1b") as ModelConfig;
    const shared = { device: backend.device, batch: 12, maxTokens: 3000, window: 32 };
    using runner = await Runner.load({ ...shared, target: { config, seed: 1 } });
    const lengths = Array.from({ length: 12 }, (_, i) => 2700 - 211 * i);
    runner.skipPrefill(lengths, { seed: 2 });
    const limits = lengths.map((_, i) => 64 - 3 * i);
    for (const sampling of [greedy, sampled]) {
      const want = await runner.decode(plain, sampling, { maxNewTokens: limits });
      for (const gamma of [1, 3, 7, 16]) {
        for (const cache of ["streaming", "snapkv", "full"] as const) {
          const spec = { ...plain, method: "self", cache, gamma, budget: 513, window: 32 } as const;
          const got = await runner.decode(spec, sampling, { maxNewTokens: limits });
          expect(got.tokens, name(spec)).toEqual(want.tokens);
        }
      }
    }
  }, 300_000);
});

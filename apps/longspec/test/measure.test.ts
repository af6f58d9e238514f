import { describe, expect, test } from "bun:test";
import { mismatchMessage, firstDifference } from "../src/identity.ts";
import { measure, type Work } from "../src/measure.ts";
import type { MethodChoice } from "../src/methods.ts";
import { FakeEngine, type FakeOptions } from "./fake_engine.ts";

const streaming: MethodChoice = { method: "self", cache: "streaming", gamma: 4, budget: 256 };
const small: MethodChoice = { method: "model", cache: "full", gamma: 2, budget: null };

function makeWork(overrides: Partial<Work> = {}): Work {
  return {
    prompts: [Int32Array.of(1, 2, 3), Int32Array.of(4, 5)],
    methods: [streaming, small],
    modes: ["rejection", "coupled", "greedy"],
    repetitions: 2,
    genLen: 30,
    sampling: { temperature: 0.6, topK: 0, topP: 1, minP: 0, seed: 5 },
    eosTokenIds: [],
    sinks: 16,
    windowSize: 32,
    reselectEvery: 64,
    ...overrides,
  };
}

async function run(work: Work, options: FakeOptions = {}, watch = {}) {
  const engine = new FakeEngine(options);
  await engine.prefill([...work.prompts]);
  return { engine, measured: await measure(engine, work, watch) };
}

describe("the order of a measurement", () => {
  test("warms up apart, then baseline and methods take turns in each repetition", async () => {
    const { engine } = await run(makeWork({ modes: ["greedy"] }));
    const turns = engine.calls.map((call) => `${call.speculation.method} ${call.maxNewTokens}`);
    expect(turns.slice(0, 3)).toEqual(["off 4", "self 20", "model 12"]);
    expect(turns.slice(3)).toEqual([
      "off 30",
      "self 30",
      "model 30",
      "off 30",
      "self 30",
      "model 30",
    ]);
  });

  test("modes run sampled first, each with its rule, temperature and seeds", async () => {
    const { engine, measured } = await run(makeWork());
    const long = engine.calls.filter((call) => call.maxNewTokens === 30);
    const drafts = long.filter((call) => call.speculation.method === "self");
    const rules = drafts.map(({ speculation, sampling }) => [
      speculation.rule,
      sampling.temperature,
      sampling.seed,
    ]);
    expect(rules).toEqual([
      ["rejection", 0.6, 5],
      ["rejection", 0.6, 6],
      ["match", 0.6, 5],
      ["match", 0.6, 6],
      ["match", 0, 5],
      ["match", 0, 6],
    ]);
    const plain = long.filter((call) => call.speculation.method === "off");
    expect(plain.every((call) => call.speculation.rule === "match")).toBeTrue();
    expect(measured.seeds).toEqual([5, 6]);
  });

  test("a method reads what it asked for", async () => {
    const { engine } = await run(makeWork({ modes: ["greedy"], repetitions: 1 }));
    const [, self, model] = engine.calls.slice(3).map((call) => call.speculation);
    expect(self).toMatchObject({
      method: "self",
      cache: "streaming",
      gamma: 4,
      budget: 256,
      sinks: 16,
    });
    expect(model).toMatchObject({ method: "model", cache: "full", gamma: 2, budget: 33 });
  });
});

describe("figures", () => {
  test("follow from the times by arithmetic", async () => {
    const { measured } = await run(makeWork({ modes: ["coupled"] }), { accepted: () => 2 });
    const [baseline, self, model] = measured.rows;
    // 30 tokens: 30 baseline steps of 10 ms; 10 iterations of 14 ms with 4 drafts, of 12 ms with 2.
    expect(baseline).toMatchObject({
      method: "baseline",
      speedup: 1,
      acceptanceLength: 1,
      gamma: 0,
    });
    expect(baseline?.tokensPerSecond).toBeCloseTo(200, 9);
    expect(baseline?.msPerToken).toBeCloseTo(10, 9);
    expect(self?.speedup).toBeCloseTo(300 / 140, 9);
    expect(self?.acceptanceLength).toBeCloseTo(3, 9);
    expect(self?.acceptanceByPosition).toEqual([1, 1, 0, 0]);
    expect(self).toMatchObject({ msTarget: 10, msDraft: 1, msVerify: 10, msOther: 0 });
    expect(self?.predictedSpeedup).toBeCloseTo(30 / 14, 6);
    expect(model?.speedup).toBeCloseTo(300 / 120, 9);
    expect(model?.acceptanceRate).toBe(1);
  });

  test("share of the limit is bytes over bandwidth over time", async () => {
    const { measured } = await run(makeWork({ modes: ["coupled"], methods: [] }));
    // 20 MB a ms at 40 GB/s = 40 MB a ms.
    expect(measured.rows[0]?.limitShare).toBeCloseTo(0.5, 9);
  });

  test("stay numbers where a text ends with its first token", async () => {
    const { measured } = await run(makeWork({ modes: ["greedy"], genLen: 0 }));
    const figures = measured.rows.flatMap((row) => Object.values(row));
    expect(figures.some((figure) => Number.isNaN(figure) || figure === Infinity)).toBeFalse();
  });

  test("are the same in two runs over the same samples", async () => {
    const first = await run(makeWork());
    const second = await run(makeWork());
    expect(first.measured).toEqual(second.measured);
  });
});

describe("identity", () => {
  test("is checked where it is promised and left open where not", async () => {
    const { measured } = await run(makeWork());
    const found = measured.rows.map((row) => [row.mode, row.method, row.identical]);
    expect(found).toContainEqual(["rejection", "self", null]);
    expect(found).toContainEqual(["coupled", "self", true]);
    expect(found).toContainEqual(["greedy", "model", true]);
    expect(found).toContainEqual(["greedy", "baseline", null]);
    expect(measured.mismatches).toEqual([]);
  });

  test("one wrong token is found with its place and both tokens", async () => {
    const { measured } = await run(makeWork({ modes: ["coupled"] }), {
      corrupt: ({ speculation, sampling }, sequence, position, token) =>
        speculation.method === "model" && sampling.seed === 6 && sequence === 1 && position === 17
          ? token + 1
          : token,
    });
    expect(measured.mismatches).toHaveLength(1);
    const [mismatch] = measured.mismatches;
    expect(mismatch).toMatchObject({
      id: "model+full g2",
      repetition: 1,
      sequence: 1,
      position: 17,
    });
    expect(mismatch?.actualToken).toBe((mismatch?.expectedToken ?? 0) + 1);
    const identical = Object.fromEntries(measured.rows.map((row) => [row.method, row.identical]));
    expect(identical).toEqual({ baseline: null, self: true, model: false });
    expect(mismatch && mismatchMessage(mismatch)).toMatch(
      /model\+full g2, coupled, repetition 1: .* sequence 1, new token 17 on: baseline token \d+, here token \d+/,
    );
  });

  test("a text that ends early differs where it ends", () => {
    const long = [Int32Array.of(1, 2, 3)];
    const short = [Int32Array.of(1, 2)];
    expect(firstDifference(long, short)).toEqual({
      sequence: 0,
      position: 2,
      expectedToken: 3,
      actualToken: null,
    });
    expect(firstDifference(long, long)).toBeUndefined();
  });
});

describe("an interruption", () => {
  test("keeps what is finished and drops the decode that was cut", async () => {
    const controller = new AbortController();
    const onDecode = (call: { maxNewTokens: number; speculation: { method: string } }) => {
      if (call.maxNewTokens === 30 && call.speculation.method === "model") controller.abort();
    };
    const { measured } = await run(makeWork(), { onDecode }, { signal: controller.signal });
    expect(measured.partial).toBeTrue();
    expect(measured.samples.map((sample) => sample.id)).toEqual([
      "baseline",
      "self+streaming g4 b256",
    ]);
    expect(measured.rows.map((row) => row.repetitions)).toEqual([1, 1]);
  });

  test("before the first sample leaves no rows", async () => {
    const controller = new AbortController();
    controller.abort();
    const { measured } = await run(makeWork(), {}, { signal: controller.signal });
    expect(measured).toMatchObject({ rows: [], samples: [], partial: true });
  });
});

describe("gamma auto", () => {
  const auto: MethodChoice = { ...streaming, gamma: "auto" };

  test("drafts far where drafts are cheap and right", async () => {
    const options: FakeOptions = { msDraft: 0.1, accepted: ({ gamma }) => gamma };
    const { measured } = await run(makeWork({ methods: [auto], modes: ["greedy"] }), options);
    expect(measured.rows[1]?.gamma).toBe(16);
  });

  test("drafts little where half of it is wrong", async () => {
    const options: FakeOptions = { msDraft: 1, accepted: () => 1 };
    const { measured } = await run(makeWork({ methods: [auto], modes: ["greedy"] }), options);
    expect(measured.rows[1]?.gamma).toBeWithin(1, 6);
  });

  test("leaves a method out that cannot pay, and says so", async () => {
    const notes: string[] = [];
    const options: FakeOptions = { msDraft: 12, accepted: () => 0 };
    const work = makeWork({ methods: [auto], modes: ["greedy"] });
    const { measured } = await run(work, options, { onNote: (text: string) => notes.push(text) });
    expect(measured.rows.map((row) => row.method)).toEqual(["baseline"]);
    expect(notes[0]).toContain("no gamma pays for self, streaming 256");
  });
});

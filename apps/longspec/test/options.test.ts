import { describe, expect, test } from "bun:test";
import { parseArgv } from "../src/argv.ts";
import { UsageError } from "../src/errors.ts";
import { commands, flagsOf } from "../src/flags.ts";
import { printHelp } from "../src/help.ts";
import { editDistance, nearest } from "../src/nearest.ts";
import { type Options, resolveOptions } from "../src/options.ts";

function parse(line: string): ReturnType<typeof parseArgv> {
  return parseArgv(line.split(" ").filter((word) => word !== ""));
}

function resolve(line: string): Options {
  const { command, values } = parse(line);
  return resolveOptions(command, values);
}

/** The part of an error between tests of its message. */
function refusal(line: string): string {
  try {
    resolve(line);
  } catch (error) {
    if (error instanceof UsageError) return error.message;
    throw error;
  }
  throw new Error(`expected ${JSON.stringify(line)} to be refused, it was accepted`);
}

/** Command lines of MagicDec's README files, after their script's name, one rank each. */
const magicdecLines: [command: string, flags: string, expected: object][] = [
  [
    "baseline",
    "--model a/model.pth --model_name a/b --rank_group 0 --B 1 --prefix_len 4000 --gen_len 64 --printoutput --compile",
    { genLen: 64, maxLen: 4064, prefixLens: [4000], printOutput: true, graphs: true, methods: [] },
  ],
  [
    "longspec",
    "--target a/model.pth --model b/model.pth --model_name a/b --rank_group 0 --draft_ranks 0 --gamma 3 --B 64 --prefix_len 16000 --gen_len 64 --streamingllm_budget 256 --benchmark --compile",
    { genLen: 64, maxLen: 16064, showPhases: true },
  ],
  [
    "selfspec",
    "--model A --model_name B --rank_group 0 --gamma 3 --B 64 --prefix_len 16000 --gen_len 64 --streamingllm_budget 256 --benchmark --compile",
    { methods: [{ method: "self", cache: "streaming", gamma: 3, budget: 256 }], genLen: 64 },
  ],
  [
    "baseline",
    "--model a/model.pth --model_name a/b --rank_group 0 --B 1 --prefix_len 3969 --max_len 4096 --printoutput --compile",
    { genLen: 127, maxLen: 4096 },
  ],
  [
    "longspec",
    "--target a/model.pth --model b/model.pth --model_name a/b --rank_group 0 --draft_rank_group 0 --gamma 3 --B 64 --prefix_len 16032 --max_len 16128 --draft_budget 257 --benchmark --compile",
    { genLen: 96, maxLen: 16128 },
  ],
  [
    "selfspec",
    "--model a/model.pth --model_name a/b --rank_group 0 --gamma 3 --B 64 --prefix_len 16032 --gen_len 16128 --draft_budget 257 --benchmark --compile",
    { genLen: 16128, maxLen: 32160 },
  ],
];

describe("MagicDec's command lines", () => {
  test.each(magicdecLines)("%s %s", (command, flags, expected) => {
    expect(resolve(`${command} ${flags}`)).toMatchObject(expected);
  });

  test("with the lists of ranks they carry, word for word", () => {
    const { values } = parse(
      "--rank_group 0 1 2 3 4 5 6 7 --draft_ranks 0 1 2 3 --gamma 3 --B 64 --prefix_len 16000 --gen_len 64 --streamingllm_budget 256 --benchmark --compile",
    );
    expect(values.rankGroup).toEqual([0, 1, 2, 3, 4, 5, 6, 7]);
    expect(values.draftRankGroup).toEqual([0, 1, 2, 3]);
    expect(values).toMatchObject({
      gamma: [3],
      batch: [64],
      genLen: 64,
      benchmark: true,
      compile: true,
    });
  });

  test.each(["--draft_rank_group", "--draft_ranks", "--draft_group", "--draft-rank-group"])(
    "%s is the draft's ranks",
    (flag) => expect(parse(`${flag} 0 1`).values.draftRankGroup).toEqual([0, 1]),
  );

  test("a budget of -1 is the full cache", () => {
    const { methods } = resolve("longspec --draft_budget -1 --method model");
    expect(methods).toEqual([{ method: "model", cache: "full", gamma: 2, budget: null }]);
  });

  test("with a target, the model is the draft; without, it is the target", () => {
    expect(resolve("--target T --model D").models).toMatchObject({ target: "T", draft: "D" });
    expect(resolve("--model M").models).toMatchObject({ target: "M", draft: undefined });
    expect(resolve("").models).toMatchObject({ target: undefined, hasDraft: true });
  });
});

describe("defaults", () => {
  test("the default run has all methods in all modes", () => {
    const options = resolve("");
    expect(options.command).toBe("longspec");
    expect(options.prefixLens).toEqual(Array.from({ length: 8 }, () => 8000));
    expect(options.modes).toEqual(["rejection", "coupled", "greedy"]);
    expect(options.methods.map(({ method, cache }) => `${method} ${cache}`)).toEqual([
      "self streaming",
      "self snapkv",
      "model full",
      "model streaming",
      "model snapkv",
    ]);
    expect(options).toMatchObject({ repetitions: 3, temperature: 0.6, seed: 123, graphs: true });
  });

  test("a target of one's own without a draft leaves self-speculation", () => {
    const methods = resolve("--model M").methods.map((method) => method.method);
    expect(new Set(methods)).toEqual(new Set(["self"]));
  });

  test("lengths: ragged prompts make their batch, a given batch repeats them", () => {
    expect(resolve("--prefix-len 1000,8000,3000").prefixLens).toEqual([1000, 8000, 3000]);
    expect(resolve("--B 5 --prefix-len 10 20").prefixLens).toEqual([10, 20, 10, 20, 10]);
    expect(resolve("--prefix_len 100 --max_len 164")).toMatchObject({ genLen: 64, maxLen: 164 });
    expect(resolve("--prefix_len 100 --gen_len 9 --max_len 164")).toMatchObject({ maxLen: 164 });
  });

  test("a sweep is a grid without repeats", () => {
    const options = resolve("sweep --B 1,4 --prefix-len 100,200 --gamma 2,4 --draft-budget 64,128");
    expect(options.grid).toEqual({ batches: [1, 4], prefixLens: [100, 200] });
    expect(options.prefixLens).toEqual([200, 200, 200, 200]);
    // 4 sparse caches x 2 budgets x 2 gammas, and the full one x 2 gammas.
    expect(options.methods).toHaveLength(18);
    expect(options.modes).toEqual(["coupled"]);
  });

  test("random weights have no checkpoint, no tokenizer, and a draft where one is named", () => {
    const { models, dataset, methods } = resolve("--random-weights llama-3.1-8b");
    expect(models.random).toEqual({ target: "llama-3.1-8b", draft: undefined });
    expect(dataset).toBe("random");
    expect(new Set(methods.map((method) => method.method))).toEqual(new Set(["self"]));
    const pair = resolve("--random-weights llama-3.1-8b,llama-3.2-1b --skip-prefill");
    expect(pair.models.random).toEqual({ target: "llama-3.1-8b", draft: "llama-3.2-1b" });
    expect(pair).toMatchObject({ skipPrefill: true });
    expect(pair.methods.some((method) => method.method === "model")).toBeTrue();
  });

  test("what depends on the device is left to it", () => {
    expect(resolve("")).toMatchObject({ device: "auto", pageSize: undefined });
    expect(
      resolve("--device cuda:1 --gpu-memory-utilization .5 --prefill-chunk 2048"),
    ).toMatchObject({ device: "cuda:1", gpuMemoryUtilization: 0.5, prefillChunk: 2048 });
  });

  test("temperature 0 leaves greedy", () => {
    expect(resolve("--temperature 0").modes).toEqual(["greedy"]);
  });
});

describe("spelling", () => {
  test("dashes, underscores, =, lists by comma and space, repeats", () => {
    for (const line of [
      "--draft-budget 64",
      "--draft_budget 64",
      "--draft_budget=64",
      "--budget 64",
      "--draft-budget 64 --draft_budget 64",
    ]) {
      expect(parse(line).values.draftBudget).toEqual([64]);
    }
    expect(parse("--cache streaming,snapkv").values.cache).toEqual(["streaming", "snapkv"]);
    expect(parse("--cache streaming snapkv --json").values.cache).toEqual(["streaming", "snapkv"]);
    expect(parse("--model 007").values.model).toBe("007");
  });

  test.each([
    ["--compile", true],
    ["--compile true", true],
    ["--compile false", false],
    ["--compile=false", false],
    ["--no-compile", false],
    ["--no_compile", false],
  ])("%s", (line, expected) => {
    expect(parse(line).values.compile).toBe(expected);
  });
});

describe("bad input gets one message", () => {
  const cases: [line: string, message: RegExp][] = [
    ["--gama 3", /^--gama: .*did you mean --gamma\?$/],
    ["--draft_buget 3", /did you mean --draft-budget\?/],
    ["--xyzzy", /^--xyzzy: expected a flag of longspec, got an unknown one; see --help$/],
    ["selfspek", /^command: expected one of .*got "selfspek"; did you mean selfspec\?$/],
    ["longspec extra", /^argument: expected a flag \(--name value\), got "extra"/],
    [
      "--gamma",
      /^--gamma: expected a whole number from 1 to 16, or auto, got nothing; write --gamma/,
    ],
    ["--gamma 17", /^--gamma: expected a whole number from 1 to 16, or auto, got "17"/],
    ["--gamma 0", /^--gamma: expected .* got "0"; leave it out for/],
    ["--gamma 2.5", /^--gamma: .* got "2.5"/],
    ["--gamma 3 --gamma 4", /^--gamma: expected it once, got 3 and 4; leave one of them out$/],
    ["--gamma 3,4", /^--gamma: expected one value, got 3,4; a list is for sweep$/],
    ["--B 0", /^--B: expected a whole number from 1 to 4096, got "0"/],
    ["--B 1,2", /^--B: expected one batch size, got 1,2; a list is for sweep$/],
    ["--B ten", /^--B: .* got "ten"/],
    ["--prefix-len 0", /^--prefix-len: .* got "0"/],
    ["--B 2 --prefix-len 1,2,3", /^--prefix-len: expected at most one length a sequence \(--B 2\)/],
    [
      "--max-len 8000",
      /^--max-len: expected room for 2 new tokens after the longest prefix of 8000, got 8000/,
    ],
    [
      "--prefix-len 100 --gen-len 50 --max-len 120",
      /^--max-len: expected room for 100 prompt \+ 50 new tokens = 150, got 120; raise --max-len/,
    ],
    ["--gen-len 1", /^--gen-len: expected a whole number of at least 2, since prefill/],
    ["--draft-budget 0", /^--draft-budget: expected a whole number of at least 1, or -1 .*got "0"/],
    ["--draft-budget -7", /^--draft-budget: .* got "-7"/],
    ["--draft-budget 16", /^--draft-budget: expected more than the 16 sinks .* got 16; raise/],
    ["--sinks 300", /^--draft-budget: expected more than the 300 sinks/],
    ["--sinks -1", /^--sinks: expected a whole number from 0 to 4096, got "-1"/],
    ["--cache snapkv --draft-budget 30", /^--draft-budget: expected more than the window of 32/],
    ["--window-size 0", /^--window-size: expected a whole number from 1 to 512, got "0"/],
    [
      "--draft-budget 64 --streamingllm-budget 65",
      /expected the same as --streamingllm-budget 65, got 64/,
    ],
    ["--streamingllm-budget 64 --cache snapkv", /^--cache: expected streaming beside/],
    ["--cache ful", /^--cache: expected full, streaming or snapkv, .*got "ful"/],
    ["--temperature -1", /^--temperature: expected a number from 0 to 100, got "-1"/],
    [
      "--temperature 0 --mode coupled",
      /^--temperature: expected above 0 for --mode coupled, got 0/,
    ],
    ["--top-p 0", /^--top-p: expected a number above 0, at most 1, got "0"/],
    ["--min-p 1", /^--min-p: expected a number of at least 0, below 1, got "1"/],
    ["--seed -1", /^--seed: .* got "-1"/],
    ["--page-size 100", /^--page-size: expected a power of two from 64 to 4096, got "100"/],
    ["--device tpu", /^--device: expected auto, cpu, cuda or cuda:NUMBER, got "tpu"/],
    ["--device cpu:1", /^--device: expected auto, cpu, cuda or cuda:NUMBER, got "cpu:1"/],
    ["--device null", /^--device: expected cpu or cuda, got null, which .*no token; leave/],
    ["--rank_group 0 1 2 3", /^--rank-group: .*got 0 1 2 3: several ranks are not supported yet/],
    ["--draft_ranks 0 1", /^--draft-rank-group: .*several ranks are not supported yet/],
    ["--rank_group 1", /^--rank-group: expected rank 0/],
    ["baseline --gamma 3", /^--gamma: expected no drafting flag with baseline/],
    [
      "baseline --method self",
      /^--method: baseline does not take this flag \(longspec, sweep, plan do\)/,
    ],
    ["--resume results/x", /^--resume: longspec does not take this flag \(sweep do\)/],
    ["selfspec --target T --model D", /^--target: expected one model/],
    ["--model M --method model", /^--method: expected a draft model for the target M, got none/],
    ["sweep --gamma auto", /^--gamma: expected whole numbers from 1 to 16 with sweep, got auto/],
    ["--skip-prefill", /^--skip-prefill: expected it beside --random-weights only/],
    ["--random-weights a b c", /^--random-weights: expected llama-3\.2-1b, .* got "a,b,c"/],
    ["--random-weights a --model M", /^--model: expected no checkpoint beside --random-weights/],
    ["--random-weights a --dataset moby-dick", /^--dataset: expected random beside/],
    ["--random-weights a --method model", /^--method: expected a draft model for the target a/],
    ["selfspec --random-weights a,b", /^--random-weights: expected one model, because selfspec/],
    ["--gpu-memory-utilization 0", /^--gpu-memory-utilization: .*above 0, at most 1, got "0"/],
    ["--gpu-memory-utilization 1.1", /^--gpu-memory-utilization: .* got "1.1"/],
    ["--prefill-chunk 1", /^--prefill-chunk: expected a whole number from 64 to 65536, got "1"/],
    ["sweep --profile", /^--profile: sweep does not take this flag/],
    ["--compile=maybe", /^--compile: expected true or false, got "maybe"/],
    ["--repetitions 0", /^--repetitions: .* got "0"/],
  ];

  test.each(cases)("%s", (line, message) => {
    expect(refusal(line)).toMatch(message);
    expect(refusal(line)).not.toContain("\n");
  });
});

describe("help", () => {
  test.each(commands)("of %s names every flag with its default", (command) => {
    const lines: string[] = [];
    const { info, log } = console;
    console.info = console.log = (text: string) => lines.push(text);
    try {
      printHelp(command);
    } finally {
      console.info = info;
      console.log = log;
    }
    const text = lines.join("\n");
    for (const [, flag] of flagsOf(command)) {
      expect(text).toContain(`--${flag.name}`);
      if (flag.standard !== undefined) expect(text).toContain(`[${flag.standard}]`);
    }
  });
});

describe("did you mean", () => {
  test("counts edits", () => {
    expect(editDistance("gamma", "gamma")).toBe(0);
    expect(editDistance("", "abc")).toBe(3);
    expect(editDistance("kitten", "sitting")).toBe(3);
  });

  test("suggests only what is close", () => {
    expect(nearest("seeed", ["seed", "sinks"])).toBe("seed");
    expect(nearest("b", ["seed", "sinks"])).toBeUndefined();
  });
});

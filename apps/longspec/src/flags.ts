import type { DeviceName } from "@magicdec/engine";
import { presetNames } from "@magicdec/model";
import { z } from "zod";

/** The subcommands; the first is the default. */
export const commands = ["longspec", "baseline", "selfspec", "sweep", "plan"] as const;
export type Command = (typeof commands)[number];

/**
 * One flag: how it is spelled, what values it takes and how `--help` describes it. Both spellings
 * with dashes and underscores are accepted for every name here.
 */
export interface Flag {
  name: string;
  aliases?: readonly string[];
  /** A boolean stands alone (`--json`, `--no-json`) or takes true or false. */
  kind: "value" | "list" | "boolean";
  metavar?: string;
  schema: z.ZodType;
  /** What a value must be, as the error says it. */
  expected: string;
  /** The default as `--help` shows it. */
  standard?: string;
  help: string;
  only?: readonly Command[];
}

const whole = /^[+-]?\d+$/;

function integer(low: number, high = Number.MAX_SAFE_INTEGER) {
  return z.string().regex(whole).transform(Number).pipe(z.number().int().min(low).max(high));
}

function decimal(low: number, high: number) {
  return z
    .string()
    .regex(/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i)
    .transform(Number)
    .pipe(z.number().min(low).max(high));
}

const text = z.string().min(1);
const listOf = <T extends z.ZodType>(item: T) => z.array(item).min(1);
const gammaValue = z.union([z.literal("auto"), integer(1, 16)]);
const budgetValue = z.union([z.literal("-1").transform(() => "full" as const), integer(1)]);
const toggle = z.enum(["true", "false"]).transform((value) => value === "true");

export const flags = {
  model: {
    name: "model",
    kind: "value",
    metavar: "FOLDER",
    schema: text,
    expected: "a folder with config.json and safetensors",
    standard: "the embedded pair",
    help: "model to decode with; with --target it is the draft model",
  },
  target: {
    name: "target",
    kind: "value",
    metavar: "FOLDER",
    schema: text,
    expected: "a folder with config.json and safetensors",
    standard: "the embedded target",
    help: "model that decides the text; --model then drafts for it",
  },
  modelName: {
    name: "model-name",
    kind: "value",
    metavar: "FOLDER",
    schema: text,
    expected: "a folder with tokenizer.json",
    standard: "the target's folder",
    help: "where the tokenizer is; a Hub id is taken as a name when the target's folder has one",
  },
  randomWeights: {
    name: "random-weights",
    kind: "list",
    metavar: "SHAPES",
    schema: z.array(text).min(1).max(2),
    expected: `${presetNames.join(", ")} or a config.json; then, if wanted, the draft model's`,
    help: `no checkpoint, only times: shapes (${presetNames.join(", ")}, or a config.json) and seeded random weights; a second name is the draft model`,
  },
  skipPrefill: {
    name: "skip-prefill",
    kind: "boolean",
    schema: toggle,
    expected: "true or false",
    standard: "false",
    help: "with --random-weights: caches hold seeded noise instead of a prefill, so that times come in seconds",
    only: ["longspec", "baseline", "selfspec", "sweep"],
  },
  dataset: {
    name: "dataset",
    kind: "value",
    metavar: "NAME|PATH",
    schema: text,
    expected: "moby-dick, random, a .txt, .md or .jsonl file, or a folder of text files",
    standard: "moby-dick; random with --random-weights",
    help: "text the prompts are cut from: moby-dick, a file (.txt, .md, .jsonl), a folder, or random tokens",
  },
  batch: {
    name: "B",
    aliases: ["batch"],
    kind: "list",
    metavar: "SEQUENCES",
    schema: listOf(integer(1, 4096)),
    expected: "a whole number from 1 to 4096",
    standard: "8, or one for each --prefix-len (sweep: 1,4,8)",
    help: "batch: sequences decoded together (sweep: a list)",
  },
  prefixLen: {
    name: "prefix-len",
    kind: "list",
    metavar: "TOKENS",
    schema: listOf(integer(1)),
    expected: "whole numbers of at least 1, as 8000 or 1000,8000,3000",
    standard: "8000 (sweep: 1000,4000,8000)",
    help: "prompt tokens a sequence; several lengths make a ragged batch (sweep: a grid axis)",
  },
  genLen: {
    name: "gen-len",
    kind: "value",
    metavar: "TOKENS",
    schema: integer(2),
    expected: "a whole number of at least 2, since prefill gives the first",
    standard: "96, or what --max-len leaves",
    help: "new tokens a sequence; the first comes from prefill",
  },
  maxLen: {
    name: "max-len",
    kind: "value",
    metavar: "TOKENS",
    schema: integer(2),
    expected: "a whole number of at least 2",
    standard: "longest prefix + gen-len",
    help: "capacity of a sequence: prompt and new tokens together",
  },
  gamma: {
    name: "gamma",
    kind: "list",
    metavar: "TOKENS|auto",
    schema: listOf(gammaValue),
    expected: "a whole number from 1 to 16, or auto",
    standard: "5, full cache 2 (sweep: 2,4,6)",
    help: "tokens drafted an iteration; auto takes the best for measured times (sweep: a list)",
  },
  draftBudget: {
    name: "draft-budget",
    aliases: ["budget"],
    kind: "list",
    metavar: "TOKENS",
    schema: listOf(budgetValue),
    expected: "a whole number of at least 1, or -1 for the full cache",
    standard: "256",
    help: "KV entries a draft step reads, sinks included; -1: the full cache (sweep: a list)",
  },
  streamingBudget: {
    name: "streamingllm-budget",
    kind: "list",
    metavar: "TOKENS",
    schema: listOf(budgetValue),
    expected: "a whole number of at least 1, or -1 for the full cache",
    help: "the same, and chooses --cache streaming",
  },
  cache: {
    name: "cache",
    kind: "list",
    metavar: "POLICY",
    schema: listOf(z.enum(["full", "streaming", "snapkv"])),
    expected: "full, streaming or snapkv, or several of them",
    standard: "all that make sense",
    help: "draft caches to run: full, streaming, snapkv",
  },
  method: {
    name: "method",
    kind: "list",
    metavar: "WHO",
    schema: listOf(z.enum(["self", "model"])),
    expected: "self or model, or both",
    standard: "self,model",
    help: "who drafts: the target itself over a sparse cache, or the draft model",
    only: ["longspec", "sweep", "plan"],
  },
  mode: {
    name: "mode",
    kind: "list",
    metavar: "MODE",
    schema: listOf(z.enum(["rejection", "coupled", "greedy"])),
    expected: "rejection, coupled or greedy, or several of them",
    standard: "rejection,coupled,greedy (sweep: coupled)",
    help: "how tokens are chosen: sampled by either acceptance rule, greedy",
    only: ["longspec", "baseline", "selfspec", "sweep"],
  },
  sinks: {
    name: "sinks",
    kind: "value",
    metavar: "TOKENS",
    schema: integer(0, 4096),
    expected: "a whole number from 0 to 4096",
    standard: "16",
    help: "first entries that a streaming draft cache keeps",
  },
  windowSize: {
    name: "window-size",
    kind: "value",
    metavar: "TOKENS",
    schema: integer(1, 512),
    expected: "a whole number from 1 to 512",
    standard: "32",
    help: "last queries whose attention chooses SnapKV's entries",
  },
  reselectEvery: {
    name: "reselect-every",
    kind: "value",
    metavar: "TOKENS",
    schema: integer(1),
    expected: "a whole number of at least 1",
    standard: "512",
    help: "SnapKV chooses its entries again after so many new tokens",
  },
  temperature: {
    name: "temperature",
    kind: "value",
    metavar: "T",
    schema: decimal(0, 100),
    expected: "a number from 0 to 100",
    standard: "0.6",
    help: "of the sampled modes; 0 leaves only greedy",
  },
  topK: {
    name: "top-k",
    kind: "value",
    metavar: "TOKENS",
    schema: integer(0),
    expected: "a whole number of at least 0",
    standard: "0 (off)",
    help: "sample among the k likeliest tokens",
  },
  topP: {
    name: "top-p",
    kind: "value",
    metavar: "P",
    schema: decimal(0, 1).refine((p) => p > 0),
    expected: "a number above 0, at most 1",
    standard: "1 (off)",
    help: "sample among the likeliest tokens that hold this probability",
  },
  minP: {
    name: "min-p",
    kind: "value",
    metavar: "P",
    schema: decimal(0, 1).refine((p) => p < 1),
    expected: "a number of at least 0, below 1",
    standard: "0 (off)",
    help: "drop tokens below this share of the likeliest one's probability",
  },
  seed: {
    name: "seed",
    kind: "value",
    metavar: "N",
    schema: integer(0, 2 ** 32 - 1),
    expected: "a whole number from 0 to 4294967295",
    standard: "123",
    help: "of prompts and sampling; repetition r samples with seed + r",
  },
  repetitions: {
    name: "repetitions",
    kind: "value",
    metavar: "N",
    schema: integer(1, 1000),
    expected: "a whole number from 1 to 1000",
    standard: "3 (sweep: 1)",
    help: "times each method decodes, alternating with the baseline",
    only: ["longspec", "baseline", "selfspec", "sweep"],
  },
  stopAtEos: {
    name: "stop-at-eos",
    kind: "boolean",
    schema: toggle,
    expected: "true or false",
    standard: "false",
    help: "a sequence ends at its end-of-text token, not only at gen-len",
  },
  device: {
    name: "device",
    kind: "value",
    metavar: "NAME",
    schema: z
      .string()
      .regex(/^(auto|cpu|null|cuda(:\d{1,3})?)$/)
      .transform((name) => name as DeviceName),
    expected: "auto, cpu, cuda or cuda:NUMBER",
    standard: "auto: the first GPU, or the cpu where none can be used",
    help: "what computes: auto, cpu, cuda (the first GPU), cuda:1, ...",
  },
  threads: {
    name: "threads",
    kind: "value",
    metavar: "N",
    schema: integer(1, 1024),
    expected: "a whole number from 1 to 1024",
    standard: "one a core",
    help: "of the cpu; figures change with it, tokens do not",
  },
  pageSize: {
    name: "page-size",
    kind: "value",
    metavar: "TOKENS",
    schema: integer(64, 4096).refine((size) => (size & (size - 1)) === 0),
    expected: "a power of two from 64 to 4096",
    standard: "512 on the cpu, 256 on cuda",
    help: "tokens in a page of the KV cache",
  },
  prefillChunk: {
    name: "prefill-chunk",
    kind: "value",
    metavar: "ROWS",
    schema: integer(64, 65536),
    expected: "a whole number from 64 to 65536",
    standard: "512 on the cpu; 8192 on cuda, or what its memory allows",
    help: "prompt tokens of a prefill forward",
  },
  gpuMemoryUtilization: {
    name: "gpu-memory-utilization",
    kind: "value",
    metavar: "SHARE",
    schema: decimal(0, 1).refine((share) => share > 0),
    expected: "a number above 0, at most 1",
    standard: "0.9",
    help: "of cuda: share of its memory that may be in use, this run and others together",
  },
  compile: {
    name: "compile",
    kind: "boolean",
    schema: toggle,
    expected: "true or false",
    standard: "true",
    help: "capture an iteration once as a graph and replay it",
  },
  benchmark: {
    name: "benchmark",
    kind: "boolean",
    schema: toggle,
    expected: "true or false",
    standard: "true",
    help: "print the second table: time of an iteration by phase",
    only: ["longspec", "baseline", "selfspec"],
  },
  profile: {
    name: "profile",
    kind: "boolean",
    schema: toggle,
    expected: "true or false",
    standard: "false",
    help: "time the kernels of one iteration of each method one by one: profile.json, and a chart in report.html",
    only: ["longspec", "baseline", "selfspec"],
  },
  printoutput: {
    name: "printoutput",
    kind: "boolean",
    schema: toggle,
    expected: "true or false",
    standard: "false",
    help: "print the baseline's text of every sequence",
    only: ["longspec", "baseline", "selfspec"],
  },
  rankGroup: {
    name: "rank-group",
    kind: "list",
    metavar: "RANKS",
    schema: listOf(integer(0)),
    expected: "rank numbers, as 0",
    standard: "0",
    help: "ranks that hold the target",
  },
  draftRankGroup: {
    name: "draft-rank-group",
    aliases: ["draft-ranks", "draft-group"],
    kind: "list",
    metavar: "RANKS",
    schema: listOf(integer(0)),
    expected: "rank numbers, as 0",
    standard: "0",
    help: "ranks that hold the draft model",
  },
  alpha: {
    name: "alpha",
    kind: "value",
    metavar: "P",
    schema: decimal(0, 1),
    expected: "a number from 0 to 1",
    standard: "0.88 self, 0.65 model",
    help: "acceptance rate that the expected speed-up assumes",
    only: ["plan"],
  },
  results: {
    name: "results",
    kind: "value",
    metavar: "FOLDER",
    schema: text,
    expected: "a folder that can be written",
    standard: "results",
    help: "a folder named by the time is made in it for run.json, report.md, report.html",
    only: ["longspec", "baseline", "selfspec", "sweep"],
  },
  resume: {
    name: "resume",
    kind: "value",
    metavar: "FOLDER",
    schema: text,
    expected: "the results folder of an interrupted sweep",
    help: "go on with an interrupted sweep: finished cells are kept",
    only: ["sweep"],
  },
  json: {
    name: "json",
    kind: "boolean",
    schema: toggle,
    expected: "true or false",
    standard: "false",
    help: "print one JSON object on stdout and everything else on stderr",
  },
} as const satisfies Record<string, Flag>;

export type FlagKey = keyof typeof flags;

/** What the flags given on a command line say, each checked on its own. */
export type FlagValues = { -readonly [K in FlagKey]?: z.output<(typeof flags)[K]["schema"]> };

/** The flags that `command` takes, in the order of the help. */
export function flagsOf(command: Command): [FlagKey, Flag][] {
  const all = Object.entries(flags) as [FlagKey, Flag][];
  return all.filter(([, flag]) => flag.only === undefined || flag.only.includes(command));
}

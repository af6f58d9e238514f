import type { DeviceName } from "@magicdec/engine";
import type { CacheName, Mode } from "@magicdec/report";
import { UsageError } from "./errors.ts";
import type { Command, FlagValues } from "./flags.ts";
import { cachesOf, type MethodChoice, standardBudget, standardGamma } from "./methods.ts";

/** Everything a command needs, with defaults filled in and contradictions refused. */
export interface Options {
  command: Command;
  models: ModelChoice;
  dataset: string;
  /** Prompt tokens of each sequence; its length is the batch. In a sweep: of the largest cell. */
  prefixLens: number[];
  genLen: number;
  maxLen: number;
  methods: MethodChoice[];
  modes: Mode[];
  grid: { batches: number[]; prefixLens: number[] };
  sinks: number;
  windowSize: number;
  reselectEvery: number;
  temperature: number;
  topK: number;
  topP: number;
  minP: number;
  seed: number;
  repetitions: number;
  stopAtEos: boolean;
  device: DeviceName;
  threads: number | undefined;
  /** What suits the device where undefined. */
  pageSize: number | undefined;
  /** Rows of a prefill forward; what suits the device where undefined. */
  prefillChunk: number | undefined;
  gpuMemoryUtilization: number | undefined;
  /** Caches of noise instead of a prefill. */
  skipPrefill: boolean;
  graphs: boolean;
  showPhases: boolean;
  printOutput: boolean;
  profile: boolean;
  alpha: number | undefined;
  results: string;
  resume: string | undefined;
  json: boolean;
}

/** Which checkpoints: undefined stands for the embedded pair. */
export interface ModelChoice {
  /** Instead of checkpoints: shapes to fill with random weights, presets or files. */
  random: { target: string; draft: string | undefined } | undefined;
  target: string | undefined;
  draft: string | undefined;
  tokenizer: string | undefined;
  /** Whether there is a draft model that fits the target. */
  hasDraft: boolean;
}

const standard = { batch: 8, prefixLen: 8000, genLen: 96, sinks: 16, windowSize: 32 } as const;
const sweepStandard = {
  batches: [1, 4, 8],
  prefixLens: [1000, 4000, 8000],
  gammas: [2, 4, 6],
};

/**
 * Fills in defaults and checks what no single flag can know: combinations.
 *
 * @throws UsageError with one message that names the flags that contradict each other
 */
export function resolveOptions(command: Command, values: FlagValues): Options {
  refuseWhatThisBuildLacks(values);
  const grid = resolveGrid(command, values);
  const lengths = resolveLengths(values, grid.prefixLens);
  const shared = {
    sinks: values.sinks ?? standard.sinks,
    windowSize: values.windowSize ?? standard.windowSize,
  };
  const models = resolveModels(command, values);
  refuseForRandom(values);
  const methods = resolveMethods(command, values, models);
  for (const method of methods) checkBudget(method, shared);
  return {
    command,
    models,
    dataset: values.dataset ?? (models.random === undefined ? "moby-dick" : "random"),
    prefixLens: grid.sequences,
    ...lengths,
    methods,
    modes: resolveModes(command, values),
    grid: { batches: grid.batches, prefixLens: grid.prefixLens },
    ...shared,
    reselectEvery: values.reselectEvery ?? 512,
    temperature: values.temperature ?? 0.6,
    topK: values.topK ?? 0,
    topP: values.topP ?? 1,
    minP: values.minP ?? 0,
    seed: values.seed ?? 123,
    repetitions: values.repetitions ?? (command === "sweep" ? 1 : 3),
    stopAtEos: values.stopAtEos ?? false,
    device: values.device ?? "auto",
    threads: values.threads,
    pageSize: values.pageSize,
    prefillChunk: values.prefillChunk,
    gpuMemoryUtilization: values.gpuMemoryUtilization,
    skipPrefill: values.skipPrefill ?? false,
    graphs: values.compile ?? true,
    showPhases: values.benchmark ?? true,
    printOutput: values.printoutput ?? false,
    profile: values.profile ?? false,
    alpha: values.alpha,
    results: values.results ?? "results",
    resume: values.resume,
    json: values.json ?? false,
  };
}

function refuseWhatThisBuildLacks(values: FlagValues): void {
  if (values.device === "null") {
    throw new UsageError(
      "--device: expected cpu or cuda, got null, which records calls and decodes no token; leave " +
        "the flag out, or run bench:overhead for what the host costs",
    );
  }
  for (const [flag, ranks] of [
    ["--rank-group", values.rankGroup],
    ["--draft-rank-group", values.draftRankGroup],
  ] as const) {
    if (ranks === undefined) continue;
    if (ranks.length > 1) {
      throw new UsageError(
        `${flag}: expected one rank, got ${ranks.join(" ")}: several ranks are not supported ` +
          `yet; write ${flag} 0 to run on one`,
      );
    }
    if (ranks[0] !== 0) {
      throw new UsageError(
        `${flag}: expected rank 0, the only one there is, got ${ranks[0]}; write ${flag} 0`,
      );
    }
  }
}

function resolveGrid(command: Command, values: FlagValues) {
  if (command === "sweep") {
    const prefixLens = values.prefixLen ?? sweepStandard.prefixLens;
    const batches = values.batch ?? sweepStandard.batches;
    const sequences = Array.from({ length: Math.max(...batches) }, () => Math.max(...prefixLens));
    return { batches, prefixLens, sequences };
  }
  const prefixLens = values.prefixLen ?? [standard.prefixLen];
  const [batch, ...more] = values.batch ?? [
    prefixLens.length > 1 ? prefixLens.length : standard.batch,
  ];
  if (batch === undefined || more.length > 0) {
    throw new UsageError(
      `--B: expected one batch size, got ${values.batch?.join(",")}; a list is for sweep`,
    );
  }
  if (prefixLens.length > batch) {
    throw new UsageError(
      `--prefix-len: expected at most one length a sequence (--B ${batch}), got ` +
        `${prefixLens.length} of them; raise --B or leave it out`,
    );
  }
  const sequences = Array.from({ length: batch }, (_, i) => prefixLens[i % prefixLens.length] ?? 1);
  return { batches: [batch], prefixLens, sequences };
}

function resolveLengths(values: FlagValues, prefixLens: readonly number[]) {
  const longest = Math.max(...prefixLens);
  const { maxLen } = values;
  if (maxLen !== undefined && maxLen < longest + 2) {
    throw new UsageError(
      `--max-len: expected room for 2 new tokens after the longest prefix of ${longest}, got ${maxLen}; ` +
        "raise --max-len or lower --prefix-len",
    );
  }
  const genLen = values.genLen ?? (maxLen === undefined ? standard.genLen : maxLen - longest);
  if (maxLen !== undefined && longest + genLen > maxLen) {
    throw new UsageError(
      `--max-len: expected room for ${longest} prompt + ${genLen} new tokens = ` +
        `${longest + genLen}, got ${maxLen}; raise --max-len or lower --gen-len`,
    );
  }
  return { genLen, maxLen: maxLen ?? longest + genLen };
}

function resolveMethods(command: Command, values: FlagValues, models: ModelChoice): MethodChoice[] {
  if (command === "baseline") {
    refuseForBaseline(values);
    return [];
  }
  const who = resolveDrafters(command, values, models);
  const budgets = resolveBudgets(values);
  const gammas = resolveGammas(command, values);
  if (command !== "sweep") refuseLists({ "--gamma": gammas, "--draft-budget": budgets });
  const caches = resolveCaches(values, budgets);
  // Who drafts over its own full cache saves nothing: it runs when it is asked for by name only.
  const named = command === "selfspec" || values.method !== undefined;
  const methods: MethodChoice[] = [];
  for (const method of new Set(who)) {
    const sensible: readonly CacheName[] = cachesOf[method];
    const chosen = caches?.filter((cache) => named || sensible.includes(cache)) ?? sensible;
    for (const cache of chosen) {
      for (const budget of budgets) {
        for (const asked of gammas) {
          const full = cache === "full" || budget === "full";
          const gamma = asked ?? standardGamma(full ? "full" : cache);
          methods.push(
            full
              ? { method, cache: "full", gamma, budget: null }
              : { method, cache, gamma, budget },
          );
        }
      }
    }
  }
  return distinct(methods);
}

function resolveGammas(
  command: Command,
  values: FlagValues,
): readonly (number | "auto" | undefined)[] {
  if (command !== "sweep") return values.gamma ?? [undefined];
  if (values.gamma?.includes("auto")) {
    throw new UsageError(
      "--gamma: expected whole numbers from 1 to 16 with sweep, got auto; a sweep tries gammas " +
        "itself, list those it should try",
    );
  }
  return values.gamma ?? sweepStandard.gammas;
}

function resolveDrafters(
  command: Command,
  values: FlagValues,
  models: ModelChoice,
): readonly ("self" | "model")[] {
  if (command === "selfspec") return ["self"];
  if (values.method === undefined) return models.hasDraft ? ["self", "model"] : ["self"];
  if (values.method.includes("model") && !models.hasDraft) {
    throw new UsageError(
      `--method: expected a draft model for the target ${models.target ?? models.random?.target}, ` +
        "got none; write --target TARGET --model DRAFT (or --random-weights TARGET,DRAFT), or " +
        "--method self",
    );
  }
  return values.method;
}

/** What random weights cannot give, and what only they may do. */
function refuseForRandom(values: FlagValues): void {
  const { randomWeights, dataset } = values;
  if (randomWeights === undefined) {
    if (!values.skipPrefill) return;
    throw new UsageError(
      "--skip-prefill: expected it beside --random-weights only, because caches of noise give no " +
        "text; leave it out",
    );
  }
  for (const [flag, value] of Object.entries({
    "--model": values.model,
    "--target": values.target,
    "--model-name": values.modelName,
  })) {
    if (value === undefined) continue;
    throw new UsageError(
      `${flag}: expected no checkpoint beside --random-weights, got ${value}; leave one of them out`,
    );
  }
  if (dataset === undefined || dataset === "random") return;
  throw new UsageError(
    `--dataset: expected random beside --random-weights, which have no tokenizer, got ${dataset}; ` +
      "leave it out",
  );
}

function refuseForBaseline(values: FlagValues): void {
  const spelled = { gamma: "--gamma", draftBudget: "--draft-budget", cache: "--cache" } as const;
  for (const [key, flag] of Object.entries(spelled)) {
    if (values[key as keyof typeof spelled] === undefined) continue;
    throw new UsageError(
      `${flag}: expected no drafting flag with baseline, got one; leave it out or run selfspec`,
    );
  }
}

function resolveBudgets(values: FlagValues): (number | "full")[] {
  const { draftBudget, streamingBudget } = values;
  if (draftBudget && streamingBudget && draftBudget.join() !== streamingBudget.join()) {
    throw new UsageError(
      `--draft-budget: expected the same as --streamingllm-budget ${streamingBudget.join(",")}, ` +
        `got ${draftBudget.join(",")}; give only one of them`,
    );
  }
  return draftBudget ?? streamingBudget ?? [standardBudget];
}

function resolveCaches(
  values: FlagValues,
  budgets: readonly (number | "full")[],
): readonly CacheName[] | undefined {
  const { cache, streamingBudget } = values;
  if (streamingBudget !== undefined && cache !== undefined && cache.join() !== "streaming") {
    throw new UsageError(
      `--cache: expected streaming beside --streamingllm-budget, got ${cache.join(",")}; ` +
        "use --draft-budget for other caches",
    );
  }
  if (streamingBudget !== undefined) return ["streaming"];
  // A budget of -1 is MagicDec's way to ask for the full cache.
  if (cache === undefined && budgets.every((budget) => budget === "full")) return ["full"];
  return cache;
}

function resolveModes(command: Command, values: FlagValues): Mode[] {
  const standardModes: Mode[] =
    command === "sweep"
      ? ["coupled"]
      : command === "baseline"
        ? ["coupled", "greedy"]
        : ["rejection", "coupled", "greedy"];
  const modes = [...new Set(values.mode ?? standardModes)];
  if (values.temperature !== 0) return modes;
  if (values.mode !== undefined && modes.some((mode) => mode !== "greedy")) {
    throw new UsageError(
      `--temperature: expected above 0 for --mode ${modes.join(",")}, got 0; ` +
        "write --mode greedy or raise --temperature",
    );
  }
  return ["greedy"];
}

function resolveModels(command: Command, values: FlagValues): ModelChoice {
  const { model, target, modelName } = values;
  const [randomTarget, randomDraft] = values.randomWeights ?? [];
  if (randomDraft !== undefined && (command === "baseline" || command === "selfspec")) {
    throw new UsageError(
      `--random-weights: expected one model, because ${command} runs no second one, got ` +
        `${randomTarget} and ${randomDraft}; leave one of them out`,
    );
  }
  if (randomTarget !== undefined) {
    const random = { target: randomTarget, draft: randomDraft };
    const nothing = { target: undefined, draft: undefined, tokenizer: undefined };
    return { ...nothing, random, hasDraft: randomDraft !== undefined };
  }
  const draft = target === undefined ? undefined : model;
  if (draft !== undefined && (command === "baseline" || command === "selfspec")) {
    throw new UsageError(
      `--target: expected one model, because ${command} runs no second one, got --target ` +
        `${target} and --model ${draft}; leave one of them out`,
    );
  }
  const chosen = target ?? model;
  return {
    random: undefined,
    target: chosen,
    draft,
    tokenizer: modelName,
    // The embedded draft speaks the embedded target's vocabulary only.
    hasDraft: draft !== undefined || chosen === undefined,
  };
}

function checkBudget(method: MethodChoice, shared: { sinks: number; windowSize: number }): void {
  if (method.budget === null) return;
  if (method.cache === "streaming" && method.budget <= shared.sinks) {
    throw new UsageError(
      `--draft-budget: expected more than the ${shared.sinks} sinks of a streaming cache, got ` +
        `${method.budget}; raise --draft-budget or lower --sinks`,
    );
  }
  if (method.cache === "snapkv" && method.budget <= shared.windowSize) {
    throw new UsageError(
      `--draft-budget: expected more than the window of ${shared.windowSize} that SnapKV keeps, ` +
        `got ${method.budget}; raise --draft-budget or lower --window-size`,
    );
  }
}

function refuseLists(lists: Record<string, readonly unknown[]>): void {
  for (const [flag, list] of Object.entries(lists)) {
    if (list.length <= 1) continue;
    throw new UsageError(`${flag}: expected one value, got ${list.join(",")}; a list is for sweep`);
  }
}

function distinct(methods: readonly MethodChoice[]): MethodChoice[] {
  return [...new Map(methods.map((method) => [JSON.stringify(method), method])).values()];
}

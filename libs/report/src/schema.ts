import { z } from "zod";

/**
 * The shapes of everything a benchmark writes: the object of `--json` (LongspecReport), the file
 * run.json (RunManifest) and one line of a sweep (SweepCell). Field names are stable; a change that
 * removes or renames one raises `reportVersion`. Times are milliseconds; each field says of what.
 */
export const reportVersion = 1;

const count = z.number().int().nonnegative();
const time = z.number().nonnegative();
const share = z.number().min(0).max(1);

/**
 * How tokens are chosen, and so what "lossless" means: `rejection` keeps the distribution
 * (Leviathan et al. 2211.17192, Chen et al. 2302.01318), `coupled` returns the very tokens that
 * sampling without speculation returns for the seed (Daliri et al. 2408.07978), `greedy` likewise.
 */
export const Mode = z.enum(["rejection", "coupled", "greedy"]);
export type Mode = z.infer<typeof Mode>;

export const MethodName = z.enum(["baseline", "self", "model"]);
export type MethodName = z.infer<typeof MethodName>;

export const CacheName = z.enum(["full", "streaming", "snapkv"]);
export type CacheName = z.infer<typeof CacheName>;

/** The machine, as far as it explains a figure. */
export const Machine = z.object({
  cpu: z.string(),
  cores: count,
  /** That computed; 0 where a GPU did. */
  threads: count,
  memoryBytes: count,
  os: z.string(),
  arch: z.string(),
  /** What computed, e.g. "cpu v4" or "cuda:0 NVIDIA H200". */
  device: z.string(),
  /** Read bandwidth measured in this run, GB/s: the mean over the repetitions. */
  bandwidthGBs: z.number().nonnegative(),
});
export type Machine = z.infer<typeof Machine>;

/** Every setting of the run after defaults. */
export const RunConfig = z.object({
  command: z.enum(["longspec", "baseline", "selfspec", "sweep"]),
  target: z.string(),
  draft: z.string().nullable(),
  dataset: z.string(),
  batch: count.positive(),
  /** Prompt tokens of each sequence. */
  prefixLens: z.array(count.positive()),
  /** New tokens of each sequence. */
  genLen: count.positive(),
  /** Capacity of a sequence, prompt and new tokens together. */
  maxLen: count.positive(),
  temperature: z.number().nonnegative(),
  topK: count,
  topP: z.number(),
  minP: z.number(),
  seed: count,
  stopAtEos: z.boolean(),
  repetitions: count.positive(),
  sinks: count,
  windowSize: count.positive(),
  reselectEvery: count,
  pageSize: count.positive(),
  graphs: z.boolean(),
  device: z.string(),
  threads: count,
  /** The weights were random: times mean something, text and acceptance nothing. */
  randomWeights: z.boolean().optional(),
  /** The caches held noise instead of the prompts' prefill. */
  prefillSkipped: z.boolean().optional(),
});
export type RunConfig = z.infer<typeof RunConfig>;

/** One decode of one method: what was measured, before any averaging. */
export const Sample = z.object({
  mode: Mode,
  /** Which method, as `methodId` names it. */
  id: z.string(),
  repetition: count,
  seed: count,
  wallMs: time,
  iterations: count,
  newTokens: count,
  /** All draft steps, verify passes, acceptances and selections of the decode. */
  msDraft: time,
  msVerify: time,
  msAccept: time,
  msSelect: time,
  /** Of the iterations in which no sequence had left the batch yet. */
  wholeBatch: z.object({ iterations: count, msDraft: time, msVerify: time }),
  msOther: time,
  /** Time the host spent between the device's work. */
  hostMs: time,
  drafted: count,
  accepted: count,
  acceptedByPosition: z.array(count),
  triedByPosition: z.array(count),
  /** Bytes that the draft and verify phases had to read. */
  draftBytes: z.number().nonnegative(),
  verifyBytes: z.number().nonnegative(),
  /** Read bandwidth measured just before this repetition, GB/s. */
  bandwidthGBs: z.number().nonnegative(),
  distinct4: share,
  lookupAcceptance: share,
  /** Whether every token equals the baseline's; null where the rule does not promise it. */
  identical: z.boolean().nullable(),
});
export type Sample = z.infer<typeof Sample>;

/** One row of the table: a method in a mode, means over the repetitions. */
export const ResultRow = z.object({
  mode: Mode,
  method: MethodName,
  cache: CacheName.nullable(),
  gamma: count,
  /** Tokens of KV that a draft step reads; null where it reads all of them. */
  budget: count.positive().nullable(),
  repetitions: count.positive(),
  tokensPerSecond: z.number().nonnegative(),
  tokensPerSecondDeviation: z.number().nonnegative(),
  /** Time between two tokens of one sequence. */
  msPerToken: time,
  /** Over the baseline of the same mode and repetition. */
  speedup: z.number().nonnegative(),
  speedupDeviation: z.number().nonnegative(),
  /** Tokens an iteration yields for a sequence, the bonus token included. */
  acceptanceLength: z.number().nonnegative(),
  /** The alpha for which the equation gives that length; null for the baseline. */
  acceptanceRate: share.nullable(),
  /** Chance that the i-th drafted token is accepted, those before it being accepted. */
  acceptanceByPosition: z.array(share),
  /** T_T: one step of the baseline. */
  msTarget: time,
  /** T_D: one draft step. */
  msDraft: time,
  /** T_V: one verify pass over gamma + 1 rows. */
  msVerify: time,
  /** Acceptance and selection of draft cache entries, an iteration. */
  msAccept: time,
  msSelect: time,
  /** All of an iteration that is neither draft, verify, accept nor select. */
  msOther: time,
  /** Host work an iteration; it may overlap the device's. */
  msHost: time,
  /** (bytes that had to be read / measured bandwidth) / time. */
  limitShare: z.number().nonnegative(),
  /** Speed-up that the equation gives for this row's T_T, T_D, T_V and acceptance rate. */
  predictedSpeedup: z.number().nonnegative().nullable(),
  /** Distinct share of the 4-grams of the generated text: low means loops, which flatter drafts. */
  distinct4: share,
  /** Share of the generated tokens that a 3-gram lookup in the text would have guessed. */
  lookupAcceptance: share,
  identical: z.boolean().nullable(),
});
export type ResultRow = z.infer<typeof ResultRow>;

/** The first token at which a method left the baseline. */
export const Mismatch = z.object({
  mode: Mode,
  id: z.string(),
  repetition: count,
  sequence: count,
  /** Index among the new tokens. */
  position: count,
  expectedToken: z.number().int().nullable(),
  actualToken: z.number().int().nullable(),
  /** The target's logits of both tokens at this position; null where they were not computed. */
  expectedLogit: z.number().nullable(),
  actualLogit: z.number().nullable(),
});
export type Mismatch = z.infer<typeof Mismatch>;

/** What a method's times would give, were its drafts accepted at other rates than in this run. */
export const AssumedSpeedup = z.object({
  mode: Mode,
  method: MethodName,
  cache: CacheName.nullable(),
  budget: count.positive().nullable(),
  /** The gamma that was measured. */
  gamma: count,
  /** A whole iteration at that gamma. */
  msIteration: time,
  byAlpha: z.array(
    z.object({
      alpha: share,
      /** At the measured gamma. */
      speedup: z.number().nonnegative(),
      /** 0 where no gamma pays. */
      bestGamma: count,
      bestSpeedup: z.number().nonnegative(),
    }),
  ),
});
export type AssumedSpeedup = z.infer<typeof AssumedSpeedup>;

/** Where an iteration goes, op by op: one method's entry of profile.json. */
export const IterationProfile = z.object({
  mode: Mode,
  method: MethodName,
  cache: CacheName.nullable(),
  budget: count.positive().nullable(),
  gamma: count,
  /** Time of one write of the device's clock, taken off every op. */
  msClock: time,
  parts: z.array(
    z.object({
      phase: z.enum(["draft", "verify", "decide"]),
      kind: z.string(),
      /** Ops of this kind in one iteration, and their time together. */
      ops: count,
      ms: time,
    }),
  ),
  /** The same iteration as a graph is replayed in this run, without clocks: what it really takes. */
  msReplayed: time,
});
export type IterationProfile = z.infer<typeof IterationProfile>;

/** What `--json` prints. */
export const LongspecReport = z.object({
  version: z.literal(reportVersion),
  machine: Machine,
  config: RunConfig,
  prefill: z.object({ ms: time, tokens: count, tokensPerSecond: z.number().nonnegative() }),
  results: z.array(ResultRow),
  mismatches: z.array(Mismatch),
  /** There with random weights, whose own acceptance means nothing. */
  assumed: z.array(AssumedSpeedup).optional(),
  /** There with --profile. */
  profile: z.array(IterationProfile).optional(),
  /** True when the run was interrupted and the figures cover less than was asked for. */
  partial: z.boolean(),
  conclusion: z.string(),
  resultsFolder: z.string(),
});
export type LongspecReport = z.infer<typeof LongspecReport>;

/** The file run.json: the report with all that is needed to run it again and to check it. */
export const RunManifest = z.object({
  report: LongspecReport,
  startedAt: z.string(),
  finishedAt: z.string(),
  commandLine: z.string(),
  versions: z.record(z.string(), z.string()),
  git: z.object({ commit: z.string(), dirty: z.boolean() }).nullable(),
  seeds: z.array(count),
  samples: z.array(Sample),
});
export type RunManifest = z.infer<typeof RunManifest>;

/** One finished cell of a sweep: a line of cells.jsonl. */
export const SweepCell = z.object({
  /** Identifies the cell's whole configuration, so that a resumed sweep skips it. */
  key: z.string(),
  batch: count.positive(),
  prefixLen: count.positive(),
  row: ResultRow,
});
export type SweepCell = z.infer<typeof SweepCell>;

/** What `sweep --json` prints, and the file sweep.json. */
export const SweepReport = z.object({
  version: z.literal(reportVersion),
  machine: Machine,
  config: RunConfig,
  cells: z.array(SweepCell),
  planned: count,
  partial: z.boolean(),
  conclusion: z.string(),
  resultsFolder: z.string(),
});
export type SweepReport = z.infer<typeof SweepReport>;

/** A short name of a method that is unique within a run, e.g. "self+streaming g4 b256". */
export function methodId(row: Pick<ResultRow, "method" | "cache" | "gamma" | "budget">): string {
  if (row.method === "baseline") return "baseline";
  const budget = row.budget === null ? "" : ` b${row.budget}`;
  return `${row.method}+${row.cache} g${row.gamma}${budget}`;
}

/** What a reader calls the method, e.g. "self, streaming 256". */
export function methodLabel(row: Pick<ResultRow, "method" | "cache" | "budget">): string {
  if (row.method === "baseline") return "baseline";
  return `${row.method}, ${row.cache}${row.budget === null ? "" : ` ${row.budget}`}`;
}

/** What a reader calls the mode, e.g. "temperature 0.6, coupled". */
export function modeLabel(mode: Mode, temperature: number): string {
  return mode === "greedy" ? "greedy" : `temperature ${temperature}, ${mode}`;
}

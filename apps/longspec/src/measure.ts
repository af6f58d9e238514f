import {
  methodId,
  methodLabel,
  type Mismatch,
  type Mode,
  type ResultRow,
  type Sample,
} from "@magicdec/report";
import type { BenchEngine, DecodeResult, SamplingConfig } from "./engine.ts";
import { firstDifference } from "./identity.ts";
import { baseline, type MethodChoice, speculationConfig } from "./methods.ts";
import { type RunningMethod, toRow, toSample } from "./metrics.ts";
import { tuneGamma } from "./tune.ts";

/** The work of a measurement: prompts that are prefilled already, methods, modes, repetitions. */
export interface Work {
  prompts: readonly Int32Array[];
  methods: readonly MethodChoice[];
  modes: readonly Mode[];
  repetitions: number;
  genLen: number;
  sampling: SamplingConfig;
  eosTokenIds: readonly number[];
  sinks: number;
  windowSize: number;
  reselectEvery: number;
}

/** How a measurement tells of its progress and is stopped. */
export interface Watch {
  signal?: AbortSignal;
  /** A method begins to decode; `total` new tokens are wanted. */
  onDecode?: (
    label: { mode: Mode; id: string; repetition: number | "warm-up" },
    total: number,
  ) => void;
  onTokens?: (newTokens: number) => void;
  onNote?: (text: string) => void;
}

/** What was measured; `partial` when the signal came first. */
export interface Measurement {
  rows: ResultRow[];
  samples: Sample[];
  mismatches: Mismatch[];
  /** Of each mismatch the prompt and the baseline's tokens before it. */
  mismatchContexts: Int32Array[];
  seeds: number[];
  partial: boolean;
  /** The baseline's tokens of the first mode's first repetition. */
  text: readonly Int32Array[];
}

/** Long enough to touch all memory and code once, short enough to not matter. */
const warmUpIterations = 4;
/** Enough to know acceptance and times to some percent, for choosing a gamma. */
const tuneIterations = 12;

/**
 * Decodes with the baseline and every method in turn, `repetitions` times a mode, over the prompts
 * that `engine` has prefilled. The baseline stands in every repetition, so that a noisy machine
 * treats all alike; repetition r samples with seed + r. Where the rule promises the baseline's
 * tokens, they are compared.
 */
export async function measure(
  engine: BenchEngine,
  work: Work,
  watch: Watch = {},
): Promise<Measurement> {
  const session = new Session(engine, work, watch);
  for (const mode of work.modes) {
    await session.runMode(mode);
    if (watch.signal?.aborted) break;
  }
  return session.finish();
}

class Session {
  readonly #samples: Sample[] = [];
  readonly #mismatches: Mismatch[] = [];
  readonly #mismatchContexts: Int32Array[] = [];
  readonly #seeds = new Set<number>();
  readonly #methods = new Map<Mode, RunningMethod[]>();
  readonly #engine: BenchEngine;
  readonly #work: Work;
  readonly #watch: Watch;
  #text: readonly Int32Array[] = [];

  constructor(engine: BenchEngine, work: Work, watch: Watch) {
    this.#engine = engine;
    this.#work = work;
    this.#watch = watch;
  }

  async runMode(mode: Mode): Promise<void> {
    const methods = await this.#warmUp(mode);
    this.#methods.set(mode, methods);
    for (let repetition = 0; repetition < this.#work.repetitions; repetition++) {
      await this.#repeat(mode, methods, repetition);
      if (this.#watch.signal?.aborted) return;
    }
  }

  /** Runs each method briefly, and settles a gamma of "auto" by what that shows. */
  async #warmUp(mode: Mode): Promise<RunningMethod[]> {
    const work = this.#work;
    const plain = { ...baseline, gamma: 0 };
    const ready: RunningMethod[] = [plain];
    const brief = (method: RunningMethod, iterations: number) => {
      const tokens = Math.min(work.genLen, iterations * (method.gamma + 1));
      return this.#decode(mode, method, "warm-up", tokens);
    };
    const tunes = work.methods.some((method) => method.gamma === "auto");
    const target = await brief(plain, tunes ? tuneIterations : warmUpIterations);
    for (const method of work.methods) {
      if (this.#watch.signal?.aborted) break;
      const gamma =
        method.gamma === "auto"
          ? await tuneGamma(method, target, (one) => brief(one, tuneIterations))
          : method.gamma;
      if (gamma === 0) {
        this.#watch.onNote?.(`${mode}: no gamma pays for ${methodLabel(method)}, it is left out`);
        continue;
      }
      if (method.gamma !== "auto") await brief({ ...method, gamma }, warmUpIterations);
      ready.push({ ...method, gamma });
    }
    return ready;
  }

  async #repeat(mode: Mode, methods: RunningMethod[], repetition: number): Promise<void> {
    const bandwidthGBs = this.#engine.device.probe("read_bandwidth");
    const seed = this.#work.sampling.seed + repetition;
    let reference: readonly Int32Array[] | undefined;
    for (const method of methods) {
      const result = await this.#decode(mode, method, repetition, this.#work.genLen);
      if (this.#watch.signal?.aborted) return;
      const id = methodId(method);
      const exact = method.method !== "baseline" && mode !== "rejection";
      const difference = exact && reference ? firstDifference(reference, result.tokens) : undefined;
      if (difference !== undefined) {
        const { sequence, position } = difference;
        const logits = { expectedLogit: null, actualLogit: null };
        this.#mismatches.push({ mode, id, repetition, ...difference, ...logits });
        const prompt = this.#work.prompts[sequence] ?? [];
        const before = reference?.[sequence]?.subarray(0, position) ?? [];
        this.#mismatchContexts.push(Int32Array.of(...prompt, ...before));
      }
      reference ??= result.tokens;
      if (this.#text.length === 0) this.#text = result.tokens;
      this.#seeds.add(seed);
      const { prompts } = this.#work;
      const identical = exact ? difference === undefined : null;
      const context = { mode, id, repetition, seed, bandwidthGBs, prompts, identical };
      this.#samples.push(toSample(result, context));
    }
  }

  #decode(
    mode: Mode,
    method: RunningMethod,
    repetition: number | "warm-up",
    maxNewTokens: number,
  ): Promise<DecodeResult> {
    const work = this.#work;
    const watch = this.#watch;
    watch.onDecode?.(
      { mode, id: methodId(method), repetition },
      maxNewTokens * work.prompts.length,
    );
    const seed = work.sampling.seed + (repetition === "warm-up" ? 0 : repetition);
    const temperature = mode === "greedy" ? 0 : work.sampling.temperature;
    const longest = Math.max(...work.prompts.map((prompt) => prompt.length)) + work.genLen;
    return this.#engine.decode(
      speculationConfig(method, mode, { ...work, longest }),
      { ...work.sampling, temperature, seed },
      {
        maxNewTokens,
        eosTokenIds: [...work.eosTokenIds],
        ...(watch.onTokens && { onProgress: watch.onTokens }),
        ...(watch.signal && { signal: watch.signal }),
      },
    );
  }

  finish(): Measurement {
    const rows: ResultRow[] = [];
    for (const [mode, methods] of this.#methods) {
      const ofMode = this.#samples.filter((sample) => sample.mode === mode);
      const baselines = ofMode.filter((sample) => sample.id === "baseline");
      for (const method of methods) {
        const samples = ofMode.filter((sample) => sample.id === methodId(method));
        if (samples.length === 0) continue;
        rows.push(toRow(method, samples, baselines, this.#work.prompts.length));
      }
    }
    return {
      rows,
      samples: this.#samples,
      mismatches: this.#mismatches,
      mismatchContexts: this.#mismatchContexts,
      seeds: [...this.#seeds],
      partial: this.#watch.signal?.aborted ?? false,
      text: this.#text,
    };
  }
}

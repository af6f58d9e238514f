import type { PagedKvOptions } from "@magicdec/cache";
import {
  Model,
  type ModelConfig,
  type ModelSource,
  NoisePool,
  type OpenedModel,
  openModel,
} from "@magicdec/model";
import type { GraphSizes } from "@magicdec/speculation";
import { Device, deviceOptions, type OpTimes, singleRank, type Tensor } from "@magicdec/tensor";
import { DecodeRun } from "./decode.ts";
import { Decoders } from "./decoders.ts";
import { afterFailure } from "./failure.ts";
import { type MemoryPlan, MemoryPlanError, type PlannedModel, planMemory } from "./plan.ts";
import { prefill } from "./prefill.ts";
import { maxGamma as largestGamma, Resident } from "./resident.ts";
import { prefillChunks, standardGraphSizes, standardPageSize } from "./standards.ts";
import type {
  DecodeOptions,
  DecodeResult,
  RunnerOptions,
  SamplingConfig,
  SpeculationConfig,
} from "./types.ts";

export interface PrefillCallOptions {
  /** Run the prompts through the draft model too. */
  readonly needDraft?: boolean;
  /** Keep the prefilled state, so that every decode starts from the prompts again (default). Otherwise one decode follows, and pages go back as it ends. */
  readonly rewindable?: boolean;
  readonly onProgress?: (doneTokens: number, totalTokens: number) => void;
  readonly signal?: AbortSignal;
}

/**
 * A target and, if wanted, a draft model with their caches, for one static batch at a time: prefill prompts, then decode them by any method. What the benchmarks
 * drive directly, and what the engine is built on. Used from one thread.
 */
export class Runner implements Disposable {
  readonly device: Device;
  readonly target: Model;
  readonly draft: Model | undefined;
  readonly memoryPlan: MemoryPlan;
  readonly #options: ResolvedOptions;
  readonly #targetResident: Resident;
  readonly #draftResident: Resident | undefined;
  readonly #logits: Tensor;
  readonly #decoders: Decoders;
  #probabilities: Tensor | undefined;
  #prompts: readonly Int32Array[] = [];
  #draftPrefilled = false;

  private constructor(
    device: Device,
    target: Model,
    draft: Model | undefined,
    plan: MemoryPlan,
    options: ResolvedOptions,
  ) {
    const { batch, maxGamma } = options;
    this.device = device;
    this.target = target;
    this.draft = draft;
    this.memoryPlan = plan;
    this.#options = options;
    const resident = (model: Model) =>
      new Resident({ ...options, device, model, kv: kvOptions(model.config, options) });
    this.#targetResident = resident(target);
    this.#draftResident = draft === undefined ? undefined : resident(draft);
    const { vocabSize } = target.config;
    this.#logits = device.alloc([batch * (maxGamma + 1), vocabSize], "f32");
    const planned = plan.parts.find(({ name }) => name === "draft caches");
    this.#decoders = new Decoders(
      {
        device,
        batch,
        target: this.#targetResident,
        draft: this.#draftResident,
        logits: this.#logits,
        probabilities: () =>
          (this.#probabilities ??= device.alloc([batch, maxGamma, vocabSize], "f32")),
        graphs: options.graphs,
      },
      planned?.bytes ?? 0,
    );
  }

  /** Opens the checkpoints, checks that they fit each other, the context and the memory, then loads. Nothing is allocated before all checks passed. */
  static async load(
    options: RunnerOptions,
    onProgress: (progress: { phase: "load"; done: number; total: number }) => void = () => {},
  ): Promise<Runner> {
    const target = await openModel(options.target);
    const draft = options.draft === undefined ? undefined : await openModel(options.draft);
    const checked = check(options, target.config, draft?.config);
    const { threads } = options;
    const device = Device.open({ ...deviceOptions(options.device ?? "auto"), threads });
    try {
      const models = draft === undefined ? [target] : [target, draft];
      const { plan, resolved } = planRun(device, models, checked);
      const report = (done: number, total: number) => onProgress({ phase: "load", done, total });
      const targetModel = await target.load(device, singleRank, report);
      const draftModel = await draft?.load(device, singleRank, report);
      return new Runner(device, targetModel, draftModel, plan, resolved);
    } catch (error) {
      afterFailure(() => device.close());
      throw error;
    }
  }

  /** Context length of a model, in tokens. */
  static async contextOf(source: ModelSource): Promise<number> {
    return (await openModel(source)).config.maxPositions;
  }

  /** Tokens of a KV page. */
  get pageSize(): number {
    return this.#options.pageSize;
  }

  /** Runs the prompts (token ids, any lengths) through the target, and the draft model where asked. Replaces what was prefilled before. */
  async prefill(
    prompts: readonly Int32Array[],
    options: PrefillCallOptions = {},
  ): Promise<{ ms: number; tokens: number }> {
    this.#checkPrompts(prompts);
    const { needDraft = false, rewindable = true, onProgress, signal } = options;
    const residents = [this.#targetResident];
    if (needDraft) residents.push(this.#requireDraft());
    const perModel = prompts.reduce((sum, prompt) => sum + prompt.length, 0);
    const total = perModel * residents.length;
    const started = performance.now();
    this.#prompts = [];
    let before = 0;
    for (const resident of residents) {
      resident.forget();
      resident.releaseRows();
      const done = before;
      await prefill(resident, prompts, {
        device: this.device,
        chunk: this.#options.prefillChunk,
        batch: this.#options.batch,
        window: this.#options.window,
        onProgress: (tokens) => onProgress?.(done + tokens, total),
        signal,
      });
      signal?.throwIfAborted();
      if (rewindable) resident.hold(prompts.length);
      before += perModel;
    }
    this.#prompts = prompts;
    this.#draftPrefilled = needDraft;
    return { ms: performance.now() - started, tokens: total };
  }

  /**
   * Stands for a prefill where only times count: the caches of prompts of these lengths hold seeded noise. What follows decodes the same noise by any
   * method, so that their tokens can be compared.
   */
  skipPrefill(lengths: readonly number[], options: { needDraft?: boolean; seed: number }): void {
    const prompts = lengths.map((length) => new Int32Array(length));
    this.#checkPrompts(prompts);
    const { needDraft = false, seed } = options;
    const residents = [this.#targetResident];
    if (needDraft) residents.push(this.#requireDraft());
    using noise = new NoisePool(this.device, seed, 1);
    for (const resident of residents) {
      resident.forget();
      resident.releaseRows();
      resident.fillWithNoise(lengths, noise);
      resident.hold(prompts.length);
    }
    this.#prompts = prompts;
    this.#draftPrefilled = needDraft;
  }

  /** Decodes the prefilled prompts. After a rewindable prefill every call starts from the prompts again, so methods can alternate. */
  async decode(
    spec: SpeculationConfig,
    sampling: SamplingConfig | readonly SamplingConfig[],
    options: DecodeOptions,
  ): Promise<DecodeResult> {
    this.#checkDecode(spec);
    for (const [i, prompt] of this.#prompts.entries()) {
      const { maxNewTokens } = options;
      const extra = typeof maxNewTokens === "number" ? maxNewTokens : (maxNewTokens[i] ?? 0);
      if (prompt.length + extra > this.#options.maxTokens) {
        throw new RangeError(
          `decode: expected prompt + new tokens of at most ${this.#options.maxTokens}, ` +
            `got ${prompt.length} + ${extra} for sequence ${i}`,
        );
      }
    }
    try {
      return await this.#run(spec, sampling, options).run();
    } catch (error) {
      afterFailure(() => this.#decoders.drop(spec));
      throw error;
    }
  }

  /**
   * Times every op of one iteration of the whole batch, enqueued op by op. Phases: 1 drafts, 2 verifies, 3 decides, 4 publishes. Starts from the
   * prefilled prompts, as `decode` does.
   */
  profile(spec: SpeculationConfig, sampling: SamplingConfig | readonly SamplingConfig[]): OpTimes {
    this.#checkDecode(spec);
    const times = this.#run(spec, sampling, { maxNewTokens: 2 }).profile();
    this.#decoders.drop(spec);
    return times;
  }

  #run(
    spec: SpeculationConfig,
    sampling: SamplingConfig | readonly SamplingConfig[],
    options: DecodeOptions,
  ): DecodeRun {
    const { device } = this;
    const residents = { target: this.#targetResident, draft: this.#draftResident };
    const decoder = this.#decoders.take(spec);
    const prompts = this.#prompts;
    return new DecodeRun({ device, ...residents, decoder, prompts }, sampling, options);
  }

  #checkDecode(spec: SpeculationConfig): void {
    if (this.device.backend === "null") {
      throw new RangeError(
        "decode: expected a device that computes, got the null backend, which only records; take --device cpu",
      );
    }
    if (this.#prompts.length === 0) throw new Error("decode: expected prefilled prompts, got none");
    if (spec.method === "model" && !this.#draftPrefilled) {
      throw new Error('decode: method "model" expects a prefill with needDraft, got one without');
    }
    checkSpeculation(spec, this.#options);
  }

  /**
   * Logits (vocab) f32 after the last of `tokens`, from a pass of their own: what to look at where two runs differ. Replaces what was prefilled. On a CPU
   * they are bit for bit those that decoding saw; a GPU's prefill may differ from its decoding in the last bits.
   */
  async logitsAfter(tokens: Int32Array): Promise<Float32Array> {
    await this.prefill([tokens], { rewindable: false });
    return this.#targetResident.promptLogits.rows(0, 1).read() as Float32Array;
  }

  close(): void {
    // Closing the device frees what is left, whatever fails on the way.
    using _device = this.device;
    this.device.stream.sync();
    this.#decoders[Symbol.dispose]();
    this.#targetResident[Symbol.dispose]();
    this.#draftResident?.[Symbol.dispose]();
    this.#probabilities?.dispose();
    this.#logits.dispose();
    this.target.dispose();
    this.draft?.dispose();
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #requireDraft(): Resident {
    if (this.#draftResident === undefined) {
      throw new Error("prefill: needDraft expects a runner loaded with `draft`, got one without");
    }
    return this.#draftResident;
  }

  #checkPrompts(prompts: readonly Int32Array[]): void {
    const { batch, maxTokens } = this.#options;
    if (prompts.length < 1 || prompts.length > batch) {
      throw new RangeError(`prefill: expected 1 to ${batch} prompts, got ${prompts.length}`);
    }
    const { vocabSize } = this.target.config;
    for (const [i, prompt] of prompts.entries()) {
      if (prompt.length < 1 || prompt.length >= maxTokens) {
        throw new RangeError(
          `prefill: expected prompts of 1 to ${maxTokens - 1} tokens, got ${prompt.length} in prompt ${i}`,
        );
      }
      const outside = prompt.find((id) => id < 0 || id >= vocabSize);
      if (outside !== undefined) {
        throw new RangeError(
          `prefill: expected token ids in 0 .. ${vocabSize - 1}, got ${outside} in prompt ${i}`,
        );
      }
    }
  }
}

interface CheckedOptions {
  readonly batch: number;
  readonly maxTokens: number;
  readonly window: number;
  readonly maxGamma: number;
  readonly budget: number;
  readonly utilization: number;
  readonly asked: RunnerOptions;
}

interface ResolvedOptions extends CheckedOptions {
  readonly pageSize: number;
  readonly graphs: GraphSizes;
  readonly prefillChunk: number;
  /** Rows of the largest forward. */
  readonly maxRows: number;
}

/** Checks what can be known without a device. */
function check(
  asked: RunnerOptions,
  target: ModelConfig,
  draft: ModelConfig | undefined,
): CheckedOptions {
  const { batch, maxTokens, pageSize = 64, window = 32, budget = 512 } = asked;
  const { maxGamma = largestGamma, gpuMemoryUtilization: utilization = 0.9 } = asked;
  if (draft !== undefined && draft.vocabSize !== target.vocabSize) {
    throw new RangeError(
      `draft model: expected the target's vocabulary of ${target.vocabSize} tokens, got ${draft.vocabSize}; ` +
        `take a draft trained with the same tokenizer`,
    );
  }
  if (!Number.isInteger(batch) || batch < 1) {
    throw new RangeError(`batch: expected an integer >= 1, got ${batch}`);
  }
  for (const [name, config] of Object.entries({ target, draft })) {
    if (config !== undefined && maxTokens > config.maxPositions) {
      throw new RangeError(
        `${name} model: expected prompt + new tokens within its context of ${config.maxPositions}, ` +
          `got ${maxTokens}; lower --prefix-len or --gen-len`,
      );
    }
  }
  if (![64, 128, 256, 512, 1024, 2048, 4096].includes(pageSize)) {
    throw new RangeError(`page size: expected a power of two from 64 to 4096, got ${pageSize}`);
  }
  requireGamma(maxGamma, largestGamma);
  if (!(utilization > 0 && utilization <= 1)) {
    throw new RangeError(`GPU memory utilization: expected above 0, at most 1, got ${utilization}`);
  }
  return { batch, maxTokens, window, maxGamma, budget, utilization, asked };
}

/** Settles what depends on the device: the largest prefill chunk whose plan fits, unless one is asked for. */
function planRun(
  device: Device,
  models: readonly OpenedModel[],
  checked: CheckedOptions,
): { plan: MemoryPlan; resolved: ResolvedOptions } {
  const { asked } = checked;
  const chunks = asked.prefillChunk === undefined ? prefillChunks(device) : [asked.prefillChunk];
  let refusal: unknown;
  for (const prefillChunk of chunks) {
    const resolved = resolve(device, checked, prefillChunk);
    try {
      return { plan: planFor(device, models, resolved), resolved };
    } catch (error) {
      if (!(error instanceof MemoryPlanError)) throw error;
      refusal = error;
    }
  }
  throw refusal;
}

function resolve(device: Device, checked: CheckedOptions, prefillChunk: number): ResolvedOptions {
  const { asked, batch, maxGamma } = checked;
  const { pageSize = standardPageSize(device), graphs = true } = asked;
  const { graphSizes = standardGraphSizes(device) } = asked;
  return {
    ...checked,
    pageSize,
    graphs: graphs ? graphSizes : "none",
    prefillChunk,
    maxRows: Math.max(prefillChunk, batch * (maxGamma + 1)),
  };
}

function planFor(
  device: Device,
  opened: readonly OpenedModel[],
  options: ResolvedOptions,
): MemoryPlan {
  const { batch, maxRows, maxGamma, budget, window, utilization } = options;
  const models: PlannedModel[] = opened.map(({ config }) => ({
    config,
    kv: kvOptions(config, options),
  }));
  const policy = { budget, sinks: 0, window, reselectEvery: 1 };
  const graphs = options.graphs !== "none";
  return planMemory({ device, models, batch, maxRows, maxGamma, policy, graphs, utilization });
}

function kvOptions(config: ModelConfig, options: ResolvedOptions): PagedKvOptions {
  const { batch, maxTokens, pageSize, maxGamma } = options;
  // Iterations in flight may run past a sequence's end before the host has read that it ended.
  const slack = 3 * (maxGamma + 1);
  const pagesPerSequence = Math.ceil((maxTokens + slack) / pageSize);
  return {
    layers: config.layers,
    kvHeads: config.kvHeads,
    headDim: config.headDim,
    pageSize,
    pages: batch * pagesPerSequence,
    batch,
    maxPagesPerSequence: pagesPerSequence,
    parking: true,
  };
}

function checkSpeculation(spec: SpeculationConfig, options: ResolvedOptions): void {
  if (spec.method === "off") return;
  const { gamma, budget, window, cache } = spec;
  requireGamma(gamma, options.maxGamma);
  if (cache !== "full" && (!Number.isInteger(budget) || budget < 2)) {
    throw new RangeError(`draft budget: expected an integer >= 2 tokens, got ${budget}`);
  }
  if (cache === "snapkv" && window > options.window) {
    throw new RangeError(
      `window size: expected at most ${options.window} (what the prefill kept queries for), got ${window}`,
    );
  }
}

function requireGamma(gamma: number, most: number): void {
  if (Number.isInteger(gamma) && gamma >= 1 && gamma <= most) return;
  throw new RangeError(`gamma: expected an integer from 1 to ${most}, got ${gamma}`);
}

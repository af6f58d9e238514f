import type { PagedKvOptions } from "@magicdec/cache";
import { Model, type ModelConfig, readModel } from "@magicdec/model";
import { Device, singleRank, type Tensor } from "@magicdec/tensor";
import { DecodeRun } from "./decode.ts";
import { type MemoryPlan, planMemory } from "./plan.ts";
import { prefill } from "./prefill.ts";
import { maxGamma, Resident } from "./resident.ts";
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
  #prompts: readonly Int32Array[] = [];
  #draftPrefilled = false;

  private constructor(
    device: Device,
    target: Model,
    draft: Model | undefined,
    plan: MemoryPlan,
    options: ResolvedOptions,
  ) {
    const { batch, maxRows, window } = options;
    this.device = device;
    this.target = target;
    this.draft = draft;
    this.memoryPlan = plan;
    this.#options = options;
    const resident = (model: Model) =>
      new Resident({ device, model, batch, kv: kvOptions(model.config, options), maxRows, window });
    this.#targetResident = resident(target);
    this.#draftResident = draft === undefined ? undefined : resident(draft);
    const rows = batch * (maxGamma + 1);
    this.#logits = device.alloc([rows, target.config.vocabSize], "f32");
  }

  /** Opens the checkpoints, checks that they fit each other, the context and the memory, then loads. Nothing is allocated before all checks passed. */
  static async load(
    options: RunnerOptions,
    onProgress: (progress: { phase: "load"; done: number; total: number }) => void = () => {},
  ): Promise<Runner> {
    const target = await readModel(options.target);
    const draft = options.draft === undefined ? undefined : await readModel(options.draft);
    const resolved = resolve(options, target.config, draft?.config);
    const device = Device.open({
      backend: options.device ?? "cpu",
      ...(options.threads === undefined ? {} : { threads: options.threads }),
    });
    try {
      const plan = planMemory({
        target: target.config,
        draft: draft?.config,
        targetKv: kvOptions(target.config, resolved),
        draftKv: draft === undefined ? undefined : kvOptions(draft.config, resolved),
        maxRows: resolved.maxRows,
        logitRows: resolved.batch * (maxGamma + 2),
        policy: {
          budget: options.budget ?? 512,
          sinks: 0,
          window: resolved.window,
          reselectEvery: 1,
        },
        availableBytes: device.info.availableMemoryBytes,
      });
      const report = (done: number, total: number) => onProgress({ phase: "load", done, total });
      const load = (folder: string) => Model.load(device, singleRank, folder, report);
      const targetModel = await load(options.target);
      const draftModel = options.draft === undefined ? undefined : await load(options.draft);
      return new Runner(device, targetModel, draftModel, plan, resolved);
    } catch (error) {
      device.close();
      throw error;
    }
  }

  /** Context length of a model folder, in tokens. */
  static async contextOf(folder: string): Promise<number> {
    return (await readModel(folder)).config.maxPositions;
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

  /** Decodes the prefilled prompts. After a rewindable prefill every call starts from the prompts again, so methods can alternate. */
  async decode(
    spec: SpeculationConfig,
    sampling: SamplingConfig | readonly SamplingConfig[],
    options: DecodeOptions,
  ): Promise<DecodeResult> {
    if (this.#prompts.length === 0) throw new Error("decode: expected prefilled prompts, got none");
    if (spec.method === "model" && !this.#draftPrefilled) {
      throw new Error('decode: method "model" expects a prefill with needDraft, got one without');
    }
    checkSpeculation(spec, this.#options);
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
    using run = new DecodeRun(
      {
        device: this.device,
        target: this.#targetResident,
        draft: this.#draftResident,
        logits: this.#logits,
        prompts: this.#prompts,
        graphs: this.#options.graphs,
      },
      spec,
      sampling,
      options,
    );
    return await run.run();
  }

  /**
   * Logits (vocab) f32 after the last of `tokens`, from a pass of their own: what to look at where two runs differ. Replaces what was prefilled; bits do
   * not depend on how the tokens came into the cache, so they are those that decoding saw.
   */
  async logitsAfter(tokens: Int32Array): Promise<Float32Array> {
    await this.prefill([tokens], { rewindable: false });
    return this.#targetResident.promptLogits.rows(0, 1).read() as Float32Array;
  }

  close(): void {
    this.device.stream.sync();
    this.#targetResident[Symbol.dispose]();
    this.#draftResident?.[Symbol.dispose]();
    this.#logits.dispose();
    this.target.dispose();
    this.draft?.dispose();
    this.device.close();
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

/**
 * Tokens of a page where none is asked for. A head's K of one page is one run of memory, and the CPU's prefetchers want long ones: on two Zen 4 cores a decode step
 * at 8 x 8000 takes 1.4 times its bytes over the read bandwidth with pages of 64, 1.26 with 256, 1.2 with 512 and 1024.
 */
export const standardPageSize = 512;

interface ResolvedOptions {
  readonly batch: number;
  readonly maxTokens: number;
  readonly pageSize: number;
  readonly graphs: boolean;
  readonly prefillChunk: number;
  readonly window: number;
  readonly maxRows: number;
}

function resolve(
  options: RunnerOptions,
  target: ModelConfig,
  draft: ModelConfig | undefined,
): ResolvedOptions {
  const {
    batch,
    maxTokens,
    pageSize = standardPageSize,
    graphs = true,
    prefillChunk = 512,
    window = 32,
  } = options;
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
  const maxRows = Math.max(prefillChunk, batch * (maxGamma + 1));
  return { batch, maxTokens, pageSize, graphs, prefillChunk, window, maxRows };
}

function kvOptions(config: ModelConfig, options: ResolvedOptions): PagedKvOptions {
  const { batch, maxTokens, pageSize } = options;
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
  };
}

function checkSpeculation(spec: SpeculationConfig, options: ResolvedOptions): void {
  if (spec.method === "off") return;
  const { gamma, budget, window, cache } = spec;
  if (!Number.isInteger(gamma) || gamma < 1 || gamma > maxGamma) {
    throw new RangeError(`gamma: expected an integer from 1 to ${maxGamma}, got ${gamma}`);
  }
  if (cache !== "full" && (!Number.isInteger(budget) || budget < 2)) {
    throw new RangeError(`draft budget: expected an integer >= 2 tokens, got ${budget}`);
  }
  if (cache === "snapkv" && window > options.window) {
    throw new RangeError(
      `window size: expected at most ${options.window} (what the prefill kept queries for), got ${window}`,
    );
  }
}

import { Tokenizer } from "@magicdec/text";
import { Runner } from "./runner.ts";
import type {
  DecodeStats,
  EngineOptions,
  FinishReason,
  SamplingConfig,
  SequenceRequest,
  SpeculationConfig,
} from "./types.ts";

/** Where a sequence's output goes. */
export interface SequenceSink {
  tokens(tokens: readonly number[], text: string): void;
  end(finish: FinishReason, text: string, stats: DecodeStats | undefined): void;
  error(error: unknown): void;
}

interface Pending {
  readonly id: number;
  readonly request: SequenceRequest;
  readonly sink: SequenceSink;
}

const defaults: SpeculationConfig = {
  method: "self",
  cache: "streaming",
  gamma: 5,
  budget: 256,
  sinks: 16,
  window: 32,
  reselectEvery: 512,
  rule: "rejection",
};

/**
 * Decodes requests in static batches: whatever waits when the engine is free runs together, each with its own sampling, and each leaves as it
 * ends. Lives where the runner lives; the Worker and its client stand in front of it.
 */
export class Batcher {
  readonly #waiting: Pending[] = [];
  readonly #aborted = new Set<number>();
  #running: Promise<void> | undefined;
  #closing = false;

  private constructor(
    readonly runner: Runner,
    private readonly tokenizer: Tokenizer,
    private readonly speculation: SpeculationConfig,
    private readonly maxBatch: number,
    readonly maxTokens: number,
  ) {}

  static async load(options: EngineOptions): Promise<Batcher> {
    const { model, draftModel, maxBatch = 4 } = options;
    const speculation = { ...defaults, ...options.speculation };
    const tokenizer = await Tokenizer.load(model);
    const maxTokens = options.maxTokens ?? (await Runner.contextOf(model));
    const runner = await Runner.load({
      target: model,
      draft: draftModel,
      device: options.device,
      threads: options.threads,
      batch: maxBatch,
      maxTokens,
      window: speculation.window,
      budget: speculation.budget,
      maxGamma: speculation.gamma,
      gpuMemoryUtilization: options.gpuMemoryUtilization,
    });
    return new Batcher(runner, tokenizer, speculation, maxBatch, maxTokens);
  }

  /** Queues a request; it starts with whatever else waits then. */
  add(id: number, request: SequenceRequest, sink: SequenceSink): void {
    this.#waiting.push({ id, request, sink });
    this.#running ??= this.#drain();
  }

  /** Ends a request, waiting or running; its sink hears "aborted". */
  abort(id: number): void {
    this.#aborted.add(id);
  }

  /** Aborts everything and frees the runner. */
  async close(): Promise<void> {
    this.#closing = true;
    await this.#running;
    this.runner.close();
  }

  async #drain(): Promise<void> {
    // Requests of the same tick belong together.
    await new Promise(setImmediate);
    while (this.#waiting.length > 0) {
      const batch = this.#waiting.splice(0, this.maxBatch);
      try {
        await this.#run(batch);
      } catch (error) {
        for (const { sink } of batch) sink.error(error);
      }
    }
    this.#running = undefined;
  }

  async #run(batch: readonly Pending[]): Promise<void> {
    const started: (Pending & { prompt: Int32Array; sampling: SamplingConfig })[] = [];
    for (const pending of batch) {
      if (this.#isAborted(pending.id)) {
        pending.sink.end("aborted", "", undefined);
        continue;
      }
      try {
        started.push({ ...pending, ...this.#check(pending.request) });
      } catch (error) {
        pending.sink.error(error);
      }
    }
    if (started.length === 0) return;
    const needDraft = this.speculation.method === "model";
    await this.runner.prefill(
      started.map(({ prompt }) => prompt),
      { needDraft, rewindable: false },
    );
    const texts = started.map(() => this.tokenizer.detokenizer({ midText: true }));
    const result = await this.runner.decode(
      this.speculation,
      started.map(({ sampling }) => sampling),
      {
        maxNewTokens: started.map(({ request }) => request.maxNewTokens ?? 256),
        eosTokenIds: started.map(({ request }) =>
          request.ignoreEos ? [] : this.runner.target.config.eosTokenIds,
        ),
        sequenceKeys: started.map(() => 0),
        isAborted: (sequence) => this.#isAborted(started[sequence]?.id ?? 0),
        onTokens: (sequence, tokens) => {
          const text = texts[sequence]?.push(tokens) ?? "";
          started[sequence]?.sink.tokens(tokens, text);
        },
      },
    );
    for (const [sequence, { sink, id }] of started.entries()) {
      this.#aborted.delete(id);
      const finish = result.finish[sequence] ?? "aborted";
      sink.end(finish, texts[sequence]?.end() ?? "", result.stats);
    }
  }

  #isAborted(id: number): boolean {
    return this.#closing || this.#aborted.has(id);
  }

  #check(request: SequenceRequest): { prompt: Int32Array; sampling: SamplingConfig } {
    const {
      prompt: given,
      maxNewTokens = 256,
      temperature = 0,
      topK = 0,
      topP = 1,
      minP = 0,
    } = request;
    const prompt =
      typeof given === "string"
        ? this.tokenizer.encode(given, { addBos: true })
        : Int32Array.from(given);
    if (prompt.length === 0) throw new RangeError("prompt: expected at least one token, got none");
    const { vocabSize } = this.runner.target.config;
    const outside = prompt.find((id) => id < 0 || id >= vocabSize);
    if (outside !== undefined) {
      throw new RangeError(`prompt: expected token ids in 0 .. ${vocabSize - 1}, got ${outside}`);
    }
    if (!Number.isInteger(maxNewTokens) || maxNewTokens < 1) {
      throw new RangeError(`maxNewTokens: expected an integer >= 1, got ${maxNewTokens}`);
    }
    if (prompt.length + maxNewTokens > this.maxTokens) {
      throw new RangeError(
        `prompt: expected prompt + new tokens of at most ${this.maxTokens}, ` +
          `got ${prompt.length} + ${maxNewTokens}; shorten the prompt or lower maxNewTokens`,
      );
    }
    const ranges: [string, number, boolean, string][] = [
      ["temperature", temperature, temperature >= 0 && temperature <= 100, "0 to 100"],
      ["topK", topK, Number.isInteger(topK) && topK >= 0, "an integer >= 0"],
      ["topP", topP, topP > 0 && topP <= 1, "above 0, at most 1"],
      ["minP", minP, minP >= 0 && minP < 1, "0 to below 1"],
    ];
    for (const [name, value, fits, expected] of ranges) {
      if (!fits) throw new RangeError(`${name}: expected ${expected}, got ${value}`);
    }
    const seed = request.seed ?? Math.floor(Math.random() * 2 ** 52);
    return { prompt, sampling: { temperature, topK, topP, minP, seed } };
  }
}

import { type EngineInfo, type FromWorker, fromWire, type ToWorker } from "./protocol.ts";
import type { DecodeStats, EngineOptions, FinishReason, SequenceRequest } from "./types.ts";

export interface GenerateRequest extends SequenceRequest {
  /** Ends this generation early; what was accepted so far stays. */
  readonly signal?: AbortSignal;
}

/** Tokens accepted by one iteration, and their text. */
export interface GenerateChunk {
  readonly tokens: readonly number[];
  /** Whole characters only; what is not complete yet comes with a later chunk. */
  readonly text: string;
}

export interface GenerateResult {
  readonly tokens: readonly number[];
  readonly text: string;
  readonly finish: FinishReason;
  /** Of the batch that the sequence ran in. */
  readonly stats: DecodeStats | undefined;
}

/**
 * A model behind a Worker: the host's event loop stays free while it computes. Requests made together are decoded together.
 *
 *     await using engine = await Engine.load({ model: "path/to/model" });
 *     for await (const { text } of engine.generate({ prompt: "It was" })) process.stdout.write(text);
 */
export class Engine implements AsyncDisposable {
  readonly info: EngineInfo;
  readonly #worker: Worker;
  readonly #running = new Map<number, Generation>();
  readonly #closed = Promise.withResolvers<void>();
  #nextId = 1;
  #closing = false;

  private constructor(worker: Worker, info: EngineInfo) {
    this.info = info;
    this.#worker = worker;
    worker.onmessage = (event: MessageEvent<FromWorker>) => this.#receive(event.data);
    worker.onerror = (event) => this.#fail(new Error(`engine worker: ${event.message}`));
  }

  /** Loads the model in a Worker. Rejects with the loader's own message; nothing is left running then. */
  static async load(options: EngineOptions): Promise<Engine> {
    const worker = new Worker(new URL("./worker.ts", import.meta.url).href);
    const ready = Promise.withResolvers<EngineInfo>();
    worker.onmessage = (event: MessageEvent<FromWorker>) => {
      const message = event.data;
      if (message.type === "ready") ready.resolve(message.info);
      else if (message.type === "failed") ready.reject(fromWire(message.error));
    };
    worker.onerror = (event) => ready.reject(new Error(`engine worker: ${event.message}`));
    worker.postMessage({ type: "load", options } satisfies ToWorker);
    try {
      return new Engine(worker, await ready.promise);
    } catch (error) {
      worker.terminate();
      throw error;
    }
  }

  /** Starts a generation. Iterate it for chunks, or await `result()`; both may be done. */
  generate(request: GenerateRequest): Generation {
    if (this.#closing) throw new Error("engine: expected an open engine, got a closed one");
    const { signal, ...rest } = request;
    const id = this.#nextId++;
    const generation = new Generation();
    if (signal?.aborted) {
      generation.end("aborted", "", undefined);
      return generation;
    }
    this.#running.set(id, generation);
    const abort = () => this.#send({ type: "abort", id });
    signal?.addEventListener("abort", abort, { once: true });
    generation.onEnd = () => signal?.removeEventListener("abort", abort);
    this.#send({ type: "generate", id, request: rest });
    return generation;
  }

  /** Ends running generations as aborted, frees the model and stops the Worker. */
  async close(): Promise<void> {
    if (!this.#closing) {
      this.#closing = true;
      this.#send({ type: "close" });
    }
    await this.#closed.promise;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  #send(message: ToWorker): void {
    this.#worker.postMessage(message);
  }

  #receive(message: FromWorker): void {
    switch (message.type) {
      case "tokens":
        this.#running.get(message.id)?.push({ tokens: message.tokens, text: message.text });
        break;
      case "end":
        this.#running.get(message.id)?.end(message.finish, message.text, message.stats);
        this.#running.delete(message.id);
        break;
      case "error":
        this.#running.get(message.id)?.fail(fromWire(message.error));
        this.#running.delete(message.id);
        break;
      case "closed":
        this.#closed.resolve();
        break;
      default:
        break;
    }
  }

  #fail(error: Error): void {
    for (const generation of this.#running.values()) generation.fail(error);
    this.#running.clear();
    this.#closing = true;
    this.#closed.resolve();
  }
}

/** One sequence being generated. */
export class Generation implements AsyncIterable<GenerateChunk> {
  /** @internal Runs once, as the generation ends in any way. */
  onEnd: (() => void) | undefined;
  readonly #chunks: GenerateChunk[] = [];
  readonly #result = Promise.withResolvers<GenerateResult>();
  #wake = Promise.withResolvers<void>();
  #ended = false;

  constructor() {
    // A caller that only iterates gets the error there; the result's rejection must not count as unhandled.
    this.#result.promise.catch(() => {});
  }

  /** Everything, once it has ended. Rejects where the request was refused or the engine failed. */
  result(): Promise<GenerateResult> {
    return this.#result.promise;
  }

  /** Chunks from the start, each as it comes. */
  async *[Symbol.asyncIterator](): AsyncIterator<GenerateChunk> {
    for (let i = 0; ; i++) {
      while (i >= this.#chunks.length && !this.#ended) await this.#wake.promise;
      const chunk = this.#chunks[i];
      if (chunk === undefined) break;
      yield chunk;
    }
    await this.#result.promise;
  }

  /** @internal */
  push(chunk: GenerateChunk): void {
    this.#chunks.push(chunk);
    this.#notify();
  }

  /** @internal */
  end(finish: FinishReason, text: string, stats: DecodeStats | undefined): void {
    if (text.length > 0) this.#chunks.push({ tokens: [], text });
    this.#ended = true;
    this.#result.resolve({
      tokens: this.#chunks.flatMap((chunk) => chunk.tokens),
      text: this.#chunks.map((chunk) => chunk.text).join(""),
      finish,
      stats,
    });
    this.onEnd?.();
    this.#notify();
  }

  /** @internal */
  fail(error: Error): void {
    this.#ended = true;
    this.#result.reject(error);
    this.onEnd?.();
    this.#notify();
  }

  #notify(): void {
    this.#wake.resolve();
    this.#wake = Promise.withResolvers<void>();
  }
}

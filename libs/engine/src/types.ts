import type { CachePolicyName } from "@magicdec/cache";
import type { ModelSource } from "@magicdec/model";
import type { AcceptRule, GraphSizes } from "@magicdec/speculation";
import type { DeviceName } from "@magicdec/tensor";

/** How a run drafts. */
export interface SpeculationConfig {
  /** off: plain decoding. self: the target drafts for itself. model: the draft model drafts. */
  readonly method: "off" | "self" | "model";
  /** What the draft reads. */
  readonly cache: CachePolicyName;
  /** Drafted tokens an iteration, 1 to 16 (0 with method off). */
  readonly gamma: number;
  /** Tokens a draft step reads of a sequence. */
  readonly budget: number;
  /** First tokens that a streaming cache always keeps. */
  readonly sinks: number;
  /** SnapKV's observation window, tokens. */
  readonly window: number;
  /** Generated tokens after which SnapKV selects again. */
  readonly reselectEvery: number;
  readonly rule: AcceptRule;
}

/** How tokens are drawn; temperature 0 is greedy. topK 0, topP 1 and minP 0 filter nothing. */
export interface SamplingConfig {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly seed: number;
}

export interface RunnerOptions {
  /** Folder of the target checkpoint; or shapes, for timing with random weights. */
  readonly target: ModelSource;
  /** The same of a draft model with the same vocabulary. */
  readonly draft?: ModelSource | undefined;
  /** "auto" where absent: the first GPU, or the CPU where none can be used. */
  readonly device?: DeviceName | undefined;
  /** CPU: threads that compute; all cores where absent. */
  readonly threads?: number | undefined;
  /** Sequences at a time. */
  readonly batch: number;
  /** Longest sequence, prompt and generated tokens together. */
  readonly maxTokens: number;
  /** Tokens of a KV page; what suits the device where absent. */
  readonly pageSize?: number | undefined;
  /** Capture iterations as graphs (default), or enqueue each op. */
  readonly graphs?: boolean | undefined;
  /** Which batch sizes get a graph; what suits the device where absent. */
  readonly graphSizes?: Exclude<GraphSizes, "none"> | undefined;
  /** Rows of a prefill forward; what suits the device, and its memory, where absent. */
  readonly prefillChunk?: number | undefined;
  /** Largest gamma that buffers are sized for; 16 where absent. */
  readonly maxGamma?: number | undefined;
  /** Share of a GPU's memory that may be in use, this program and others together; 0.9 where absent. */
  readonly gpuMemoryUtilization?: number | undefined;
  /** Observation window that prefill keeps queries for; at least what any SnapKV run asks for. */
  readonly window?: number | undefined;
  /** Largest draft budget that the memory plan counts. */
  readonly budget?: number | undefined;
}

export type FinishReason = "length" | "eos" | "aborted";

/** What a decode run measured. Phase times are the device's own, summed over iterations. */
export interface DecodeStats {
  readonly wallMs: number;
  readonly iterations: number;
  /** Tokens emitted by iterations; each sequence's first token comes from prefill and is not among them. */
  readonly newTokens: number;
  readonly msDraft: number;
  readonly msVerify: number;
  readonly msAccept: number;
  readonly msSelect: number;
  /** Of these, the iterations in which no sequence had left yet: the times to hold against the equation. */
  readonly wholeBatch: {
    readonly iterations: number;
    readonly msDraft: number;
    readonly msVerify: number;
  };
  /** Wall time that no phase accounts for: gaps and the host. */
  readonly msOther: number;
  /** Time that the host worked rather than waited. */
  readonly hostMs: number;
  /** Tokens drafted: gamma a row and iteration. */
  readonly drafted: number;
  readonly accepted: number;
  /** Of `triedByPosition[i]` drafts judged at position i of a chain, those that stood. */
  readonly acceptedByPosition: readonly number[];
  readonly triedByPosition: readonly number[];
  /** Bytes that the draft and the verify phases had to read, summed over iterations. */
  readonly draftBytes: number;
  readonly verifyBytes: number;
}

export interface DecodeResult {
  /** Generated tokens of each sequence, the first from prefill included, an end-of-sequence token included. */
  readonly tokens: readonly Int32Array[];
  readonly finish: readonly FinishReason[];
  readonly stats: DecodeStats;
}

export interface DecodeOptions {
  /** Tokens to generate, for all sequences or for each. */
  readonly maxNewTokens: number | readonly number[];
  /** End-of-sequence tokens, for all sequences or for each. */
  readonly eosTokenIds?: readonly number[] | readonly (readonly number[])[] | undefined;
  /** Called with the tokens emitted so far in all sequences. */
  readonly onProgress?: ((newTokens: number) => void) | undefined;
  /** Called with each sequence's tokens as they are accepted. */
  readonly onTokens?: ((sequence: number, tokens: readonly number[]) => void) | undefined;
  /** Ends the whole run early. */
  readonly signal?: AbortSignal | undefined;
  /** Asked between iterations; a sequence it names ends as aborted and leaves the batch. */
  readonly isAborted?: ((sequence: number) => boolean) | undefined;
  /** Noise keys of the sequences; their index where absent. */
  readonly sequenceKeys?: readonly number[] | undefined;
}

export interface EngineOptions {
  /** Folder of the model (Hugging Face layout, with tokenizer.json). */
  readonly model: string;
  /** Folder of a draft model; needed for speculation by "model". */
  readonly draftModel?: string;
  /** How to draft; self-speculation over a streaming cache where absent. */
  readonly speculation?: Partial<SpeculationConfig>;
  /** Sequences decoded at a time. Requests beyond it wait. */
  readonly maxBatch?: number;
  /** Longest prompt + generated tokens; the model's context where absent. */
  readonly maxTokens?: number;
  /** "auto" where absent: the first GPU, or the CPU where none can be used. */
  readonly device?: DeviceName;
  /** CPU: threads that compute; all cores where absent. */
  readonly threads?: number;
  /** Share of a GPU's memory that may be in use, this program and others together; 0.9 where absent. */
  readonly gpuMemoryUtilization?: number;
}

/** What to generate. */
export interface SequenceRequest {
  /** Text, or token ids as they are. */
  readonly prompt: string | readonly number[];
  /** 256 where absent. */
  readonly maxNewTokens?: number;
  /** 0 (the default) is greedy. */
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  /** Same seed, same tokens, under accept rule "match". */
  readonly seed?: number;
  /** Go on past an end-of-sequence token. */
  readonly ignoreEos?: boolean;
}

import type { Device, KvCacheRef, Tensor } from "@magicdec/tensor";
import type { PagedKv } from "./pages.ts";
import type { QueryRing } from "./queries.ts";

/** What attention reads instead of the whole main cache; fields as in the attention op. Empty: everything. */
export interface AttentionView {
  readonly sinks?: number;
  readonly window?: number;
  readonly prefixCache?: KvCacheRef;
  readonly prefixLayer?: number;
  /** (b, pages) i32 */
  readonly prefixTable?: Tensor;
  /** (b) i32 */
  readonly prefixLen?: Tensor;
  /** (b) i32 */
  readonly tailStart?: Tensor;
}

/** Token counts a policy works with. */
export interface PolicyOptions {
  /** Tokens that a draft step reads of each sequence (StreamingLLM: sinks + window; SnapKV: selected + observation window). */
  readonly budget: number;
  /** First tokens that are always read (StreamingLLM). */
  readonly sinks: number;
  /** Observation window (SnapKV). */
  readonly window: number;
  /** Generated tokens after which a selecting policy selects again. */
  readonly reselectEvery: number;
}

/** What a policy is built over. */
export interface PolicyContext extends PolicyOptions {
  readonly device: Device;
  /** The exact cache that drafts read through the policy. */
  readonly cache: PagedKv;
  /** Kept queries of the cache's model; a policy that selects needs them. */
  readonly queries: QueryRing | undefined;
  readonly batch: number;
}

/** Decides what a draft reads of the cache. A policy serves one decode run after another; all its device state is its own. */
export interface CachePolicy extends Disposable {
  readonly name: string;
  /**
   * In-cache position limit of the query that meets the sinks: a streaming view of this many tokens rotates that query to at most this - 1.
   * 0: the query keeps its absolute position everywhere.
   */
  readonly sinkViewTokens: number;
  /** Whether it selects what is read, from queries that are kept for it. */
  readonly selects: boolean;
  /** Generated tokens between selections; Infinity for policies that never select. */
  readonly selectEvery: number;
  /** The view of one layer for the first `b` rows. */
  view(layer: number, b: number): AttentionView;
  /** Enqueues a selection for the first `b` rows from `lens` (b) i32, the tokens in the cache. */
  select(b: number, lens: Tensor): void;
  /** Enqueues what a new decode run needs before its first selection. */
  begin(): void;
  /** Enqueues: row `to` takes over row `from`'s state. */
  moveRow(from: number, to: number): void;
  /** Enqueues: row `row` holds no sequence, and its view is short and safe to read. */
  park(row: number): void;
  /** Tokens a draft step reads at a context of `length` tokens, on average between two selections. */
  tokensRead(length: number): number;
}

/** How a policy is found by name. */
export interface CachePolicyFactory {
  readonly name: string;
  /** A message where these options cannot work, else undefined. */
  validate(options: PolicyOptions): string | undefined;
  /** Device bytes it will allocate for `batch` sequences. */
  bytes(options: PolicyOptions, cache: PagedKv["options"]): number;
  create(context: PolicyContext): CachePolicy;
}

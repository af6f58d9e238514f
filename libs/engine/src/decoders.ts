import { type CachePolicy, cachePolicies } from "@magicdec/cache";
import { StatusError } from "@magicdec/tensor";
import { Decoder, type DecoderContext } from "./decoder.ts";
import type { Resident } from "./resident.ts";
import type { SpeculationConfig } from "./types.ts";

/** Configurations whose state and graphs are kept: as many as a report compares, so that repetitions replay. */
export const mostDecoders = 8;

interface Kept {
  readonly decoder: Decoder;
  readonly policy: SharedPolicy | undefined;
}

/** A policy's state, for all decoders that read the same of the cache: they run one after the other. */
interface SharedPolicy {
  readonly key: string;
  readonly policy: CachePolicy;
  readonly bytes: number;
  users: number;
}

/**
 * The decoders of a runner, one a configuration, so that a graph is captured once and not in every run. Bounded in number, and in the memory of
 * their policies by what the memory plan has set aside; the least recently used goes first.
 */
export class Decoders implements Disposable {
  /** In the order of their last use. */
  readonly #kept = new Map<string, Kept>();
  readonly #policies = new Map<string, SharedPolicy>();

  constructor(
    private readonly context: DecoderContext,
    /** Bytes that policies may hold together, while there is more than one. */
    private readonly policyBytes: number,
  ) {}

  /** The decoder of a configuration, as its last run left it. Throws RangeError where the configuration cannot work. */
  take(spec: SpeculationConfig): Decoder {
    const key = decoderKey(spec);
    const known = this.#kept.get(key);
    if (known !== undefined) {
      this.#kept.delete(key);
      this.#kept.set(key, known);
      return known.decoder;
    }
    const made = this.#make(spec);
    this.#kept.set(key, made);
    return made.decoder;
  }

  /** Frees a decoder whose run failed: nobody knows in what state it is. */
  drop(spec: SpeculationConfig): void {
    this.#free(decoderKey(spec));
  }

  [Symbol.dispose](): void {
    for (const key of this.#kept.keys()) this.#free(key);
  }

  #make(spec: SpeculationConfig): Kept {
    const needed = policyBytesOf(this.context, spec);
    while (this.#kept.size >= mostDecoders || this.#isOver(spec, needed)) {
      if (!this.#freeOldest()) break;
    }
    try {
      return this.#build(spec, needed);
    } catch (error) {
      const full = error instanceof StatusError && error.status === "out_of_memory";
      if (!full || !this.#freeOldest()) throw error;
      while (this.#freeOldest());
      return this.#build(spec, needed);
    }
  }

  #build(spec: SpeculationConfig, bytes: number): Kept {
    if (spec.method === "off") {
      return { decoder: new Decoder(this.context, spec, undefined), policy: undefined };
    }
    const shared = this.#policy(spec, bytes);
    try {
      const decoder = new Decoder(this.context, spec, shared.policy);
      shared.users++;
      return { decoder, policy: shared };
    } finally {
      this.#freeUnused(shared);
    }
  }

  #policy(spec: SpeculationConfig, bytes: number): SharedPolicy {
    const key = policyKey(spec);
    const known = this.#policies.get(key);
    if (known !== undefined) return known;
    const { cache, queries } = residentOf(this.context, spec);
    const policy = cachePolicies[spec.cache].create({
      device: this.context.device,
      cache,
      queries,
      batch: this.context.batch,
      budget: spec.budget,
      sinks: spec.sinks,
      window: spec.window,
      reselectEvery: spec.reselectEvery,
    });
    const shared: SharedPolicy = { key, policy, bytes, users: 0 };
    this.#policies.set(key, shared);
    return shared;
  }

  /** Whether a policy for `spec` would hold more than is set aside, beside those there are. */
  #isOver(spec: SpeculationConfig, needed: number): boolean {
    if (spec.method === "off" || this.#policies.has(policyKey(spec))) return false;
    const held = [...this.#policies.values()].reduce((sum, { bytes }) => sum + bytes, 0);
    return held > 0 && held + needed > this.policyBytes;
  }

  #freeOldest(): boolean {
    const [oldest] = this.#kept.keys();
    if (oldest === undefined) return false;
    this.#free(oldest);
    return true;
  }

  #free(key: string): void {
    const kept = this.#kept.get(key);
    if (kept === undefined) return;
    this.#kept.delete(key);
    try {
      kept.decoder[Symbol.dispose]();
    } finally {
      if (kept.policy !== undefined) {
        kept.policy.users--;
        this.#freeUnused(kept.policy);
      }
    }
  }

  #freeUnused(shared: SharedPolicy): void {
    if (shared.users > 0) return;
    this.#policies.delete(shared.key);
    shared.policy[Symbol.dispose]();
  }
}

function residentOf({ target, draft }: DecoderContext, spec: SpeculationConfig): Resident {
  if (spec.method !== "model") return target;
  if (draft !== undefined) return draft;
  throw new RangeError('method "model": expected a draft model, got none; load one with `draft`');
}

/** Bytes of the policy that `spec` reads through; checks its settings. */
function policyBytesOf(context: DecoderContext, spec: SpeculationConfig): number {
  if (spec.method === "off") return 0;
  const factory = cachePolicies[spec.cache];
  const problem = factory.validate(spec);
  if (problem !== undefined) throw new RangeError(problem);
  return factory.bytes(spec, residentOf(context, spec).cache.options);
}

function policyKey({ method, cache, budget, sinks, window, reselectEvery }: SpeculationConfig) {
  return JSON.stringify([method, cache, budget, sinks, window, reselectEvery]);
}

function decoderKey(spec: SpeculationConfig): string {
  if (spec.method === "off") return "off";
  return JSON.stringify([policyKey(spec), spec.gamma, spec.rule]);
}

import type {
  BenchEngine,
  DecodeResult,
  SamplingConfig,
  SpeculationConfig,
} from "../src/engine.ts";

/** One call of decode as a test sees it. */
export interface DecodeCall {
  speculation: SpeculationConfig;
  sampling: SamplingConfig;
  maxNewTokens: number;
}

export interface FakeOptions {
  /** Time of one baseline step, ms. */
  msTarget?: number;
  msDraft?: number;
  /** Tokens that every iteration accepts of its draft. */
  accepted?: (speculation: SpeculationConfig) => number;
  /** Changes the text of a call, as a wrong engine would. */
  corrupt?: (call: DecodeCall, sequence: number, position: number, token: number) => number;
  onDecode?: (call: DecodeCall) => void;
}

/**
 * An engine whose text is a function of seed and position, and whose times are made up: what it
 * measures is known beforehand. It decodes nothing.
 */
export class FakeEngine implements BenchEngine {
  readonly calls: DecodeCall[] = [];
  readonly device = { probe: () => 40 };
  #prompts: Int32Array[] = [];
  readonly #options: FakeOptions;

  constructor(options: FakeOptions = {}) {
    this.#options = options;
  }

  prefill(prompts: Int32Array[]): Promise<{ ms: number; tokens: number }> {
    this.#prompts = prompts;
    return Promise.resolve({ ms: 1, tokens: prompts.reduce((sum, one) => sum + one.length, 0) });
  }

  skipPrefill(lengths: readonly number[]): void {
    this.#prompts = lengths.map((length) => new Int32Array(length));
  }

  /** Two ops of each phase, 1 ms each. */
  profile() {
    const ops = [1, 2, 3].flatMap((phase) =>
      (["attention", "linear"] as const).map((kind) => ({ op: `md_${kind}`, kind, phase, ms: 1 })),
    );
    return { ops, msClock: 0.002 };
  }

  /** Logit i of token i is i / 4, whatever came before. */
  logitsAfter(): Promise<Float32Array> {
    return Promise.resolve(Float32Array.from({ length: 4096 }, (_, id) => id / 4));
  }

  decode(
    speculation: SpeculationConfig,
    sampling: SamplingConfig,
    options: { maxNewTokens: number | number[]; signal?: AbortSignal },
  ): Promise<DecodeResult> {
    const maxNewTokens = Number(options.maxNewTokens);
    const call = { speculation, sampling, maxNewTokens };
    this.calls.push(call);
    this.#options.onDecode?.(call);
    const tokens = this.#prompts.map((_, sequence) =>
      Int32Array.from({ length: maxNewTokens }, (_, position) => {
        const token = textToken(sampling, sequence, position);
        return this.#options.corrupt?.(call, sequence, position, token) ?? token;
      }),
    );
    const finish = tokens.map(() => (options.signal?.aborted ? "aborted" : "length") as "length");
    return Promise.resolve({ tokens, finish, stats: this.#stats(speculation, maxNewTokens) });
  }

  #stats({ method, gamma, cache, budget }: SpeculationConfig, newTokens: number) {
    const { msTarget = 10, msDraft = 1, accepted = () => gamma } = this.#options;
    const drafts = method === "off" ? 0 : gamma;
    const taken =
      method === "off" ? 0 : accepted({ method, gamma, cache, budget } as SpeculationConfig);
    const iterations = Math.ceil(newTokens / (taken + 1));
    const batch = this.#prompts.length;
    const position = (limit: number) =>
      Array.from({ length: drafts }, (_, i) => (i < limit ? iterations * batch : 0));
    return {
      wallMs: iterations * (msTarget + drafts * msDraft),
      iterations,
      newTokens: newTokens * batch,
      msDraft: iterations * drafts * msDraft,
      msVerify: iterations * msTarget,
      msAccept: 0,
      msSelect: 0,
      wholeBatch: {
        iterations,
        msDraft: iterations * drafts * msDraft,
        msVerify: iterations * msTarget,
      },
      msOther: 0,
      hostMs: 0,
      drafted: iterations * batch * Math.min(drafts, taken + 1),
      accepted: iterations * batch * taken,
      acceptedByPosition: position(taken),
      triedByPosition: position(taken + 1),
      draftBytes: 0,
      verifyBytes: iterations * msTarget * 20e6,
    };
  }
}

/** The text that any right method returns: it depends on seed, sequence and position only. */
export function textToken(sampling: SamplingConfig, sequence: number, position: number): number {
  const seed = sampling.temperature === 0 ? 0 : sampling.seed;
  return (seed * 31 + sequence * 7 + position * position) % 1000;
}

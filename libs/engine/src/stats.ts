import type { IterationRecord } from "@magicdec/speculation";
import type { DecodeStats } from "./types.ts";

/** Adds up a decode run as its iterations are read. */
export class RunStats {
  readonly #accepted: number[];
  readonly #tried: number[];
  #startedAt = 0;
  #wallMs = 0;
  #waitedMs = 0;
  #iterations = 0;
  #rows = 0;
  #newTokens = 0;
  #msDraft = 0;
  #msVerify = 0;
  #msAccept = 0;
  #msSelect = 0;
  #whole = { iterations: 0, msDraft: 0, msVerify: 0 };
  #draftBytes = 0;
  #verifyBytes = 0;

  constructor(
    private readonly gamma: number,
    private readonly batch: number,
  ) {
    this.#accepted = Array.from({ length: gamma }, () => 0);
    this.#tried = Array.from({ length: gamma }, () => 0);
  }

  get newTokens(): number {
    return this.#newTokens;
  }

  start(): void {
    this.#startedAt = performance.now();
  }

  stop(): void {
    this.#wallMs = performance.now() - this.#startedAt;
  }

  /** Runs a blocking wait and keeps it apart from the host's work. */
  waitFor(wait: () => void): void {
    const from = performance.now();
    wait();
    this.#waitedMs += performance.now() - from;
  }

  countTokens(count: number): void {
    this.#newTokens += count;
  }

  add(
    record: IterationRecord,
    extra: { msSelect: number; draftBytes: number; verifyBytes: number },
  ): void {
    this.#iterations++;
    this.#msDraft += record.msDraft;
    this.#msVerify += record.msVerify;
    this.#msAccept += record.msAccept;
    this.#msSelect += extra.msSelect;
    this.#draftBytes += extra.draftBytes;
    this.#verifyBytes += extra.verifyBytes;
    this.#rows += record.tokens.length;
    if (record.tokens.length === this.batch) {
      this.#whole.iterations++;
      this.#whole.msDraft += record.msDraft;
      this.#whole.msVerify += record.msVerify;
    }
    for (const tokens of record.tokens) {
      // A row emits its accepted drafts and one token more; the draft after the last accepted one was judged and fell.
      const accepted = tokens.length - 1;
      for (let i = 0; i < this.gamma && i <= accepted; i++) {
        this.#tried[i] = (this.#tried[i] as number) + 1;
        if (i < accepted) this.#accepted[i] = (this.#accepted[i] as number) + 1;
      }
    }
  }

  finish(): DecodeStats {
    const phases = this.#msDraft + this.#msVerify + this.#msAccept + this.#msSelect;
    const sum = (values: readonly number[]) => values.reduce((total, value) => total + value, 0);
    return {
      wallMs: this.#wallMs,
      iterations: this.#iterations,
      newTokens: this.#newTokens,
      msDraft: this.#msDraft,
      msVerify: this.#msVerify,
      msAccept: this.#msAccept,
      msSelect: this.#msSelect,
      wholeBatch: this.#whole,
      msOther: Math.max(0, this.#wallMs - phases),
      hostMs: Math.max(0, this.#wallMs - this.#waitedMs),
      drafted: this.gamma * this.#rows,
      accepted: sum(this.#accepted),
      acceptedByPosition: [...this.#accepted],
      triedByPosition: [...this.#tried],
      draftBytes: this.#draftBytes,
      verifyBytes: this.#verifyBytes,
    };
  }
}

import type { IterationRecord } from "@magicdec/speculation";
import { type Device, type DeviceEvent, type OpTimes, profileOps, sample } from "@magicdec/tensor";
import { type Decoder, depth } from "./decoder.ts";
import type { Resident } from "./resident.ts";
import { RunStats } from "./stats.ts";
import type { DecodeOptions, DecodeResult, FinishReason, SamplingConfig } from "./types.ts";

/** How long the host may keep its event loop waiting, milliseconds. */
const yieldEveryMs = 100;

export interface DecodeContext {
  readonly device: Device;
  readonly target: Resident;
  readonly draft: Resident | undefined;
  readonly decoder: Decoder;
  readonly prompts: readonly Int32Array[];
}

/** Iterations before the one that is profiled; with it, no more than the slack of a sequence's pages. */
const profileWarmUp = 2;

/** One row of the running batch. */
interface Row {
  readonly sequence: number;
  /** Tokens in the cache as far as the host has read. */
  length: number;
  left: number;
  /** Length at the last selection. */
  selectedAt: number;
}

interface InFlight {
  readonly index: number;
  readonly rows: readonly Row[];
  readonly event: DeviceEvent;
  /** The selection that ran just before it. */
  readonly selection: number | undefined;
}

/** One decode run over prefilled prompts: keeps iterations in flight, lets sequences leave as they finish, gathers what was measured. */
export class DecodeRun {
  readonly #context: DecodeContext;
  readonly #decoder: Decoder;
  readonly #options: DecodeOptions;
  readonly #stats: RunStats;
  readonly #tokens: number[][];
  readonly #finish: FinishReason[];
  readonly #eos: readonly ReadonlySet<number>[];
  #rows: Row[];

  constructor(
    context: DecodeContext,
    sampling: SamplingConfig | readonly SamplingConfig[],
    options: DecodeOptions,
  ) {
    const { prompts, decoder } = context;
    this.#context = context;
    this.#decoder = decoder;
    this.#options = options;
    this.#stats = new RunStats(decoder.gamma, prompts.length);
    this.#eos = prompts.map((_, sequence) => new Set(eosOf(options.eosTokenIds, sequence)));
    this.#tokens = prompts.map(() => []);
    this.#finish = prompts.map(() => "aborted");
    this.#rows = prompts.map((prompt, sequence) => ({
      sequence,
      length: prompt.length,
      left: limit(options.maxNewTokens, sequence),
      selectedAt: prompt.length,
    }));
    decoder.begin(prompts.length);
    for (const [row, prompt] of prompts.entries()) {
      const key = options.sequenceKeys?.[row] ?? row;
      decoder.state.setSampling(row, { ...pick(sampling, row), sequence: key });
      decoder.state.setPrompt(row, prompt.length, prompt[prompt.length - 1] as number);
    }
  }

  async run(): Promise<DecodeResult> {
    const { device } = this.#context;
    this.#start();
    device.stream.sync();
    await this.#loop();
    device.stream.sync();
    return {
      tokens: this.#tokens.map((tokens) => Int32Array.from(tokens)),
      finish: this.#finish,
      stats: this.#stats.finish(),
    };
  }

  /** Times the ops of one iteration, after some that are not timed. */
  profile(): OpTimes {
    const { device, decoder } = this.#context;
    this.#start();
    const b = this.#rows.length;
    const step = decoder.gamma + 1;
    for (const [row, { length }] of this.#rows.entries()) {
      decoder.ensure(row, length + (profileWarmUp + 1) * step);
    }
    for (let i = 0; i < profileWarmUp; i++) decoder.iteration.enqueue(b);
    device.stream.sync();
    return profileOps(device, () => decoder.iteration.enqueue(b));
  }

  /** Everything before the first iteration. */
  #start(): void {
    const { target, draft } = this.#context;
    target.rewind();
    draft?.rewind();
    this.#firstTokens();
    // One token each comes from the prompt's logits: all may have finished already.
    if (this.#rows.length === 0) return;
    this.#decoder.selection?.launch(this.#rows.length);
    this.#decoder.iteration.begin(this.#rows.length);
  }

  /** Draws each sequence's first token from the prompt's logits, and hands it out. */
  #firstTokens(): void {
    const { target, prompts, device } = this.#context;
    const b = prompts.length;
    const last = Int32Array.from(prompts, (prompt) => prompt.length - 1);
    using positions = device.from(last, [b], "i32");
    const { state } = this.#decoder;
    sample({
      logits: target.promptLogits.rows(0, b),
      params: state.params.rows(0, b),
      positions,
      out: state.ids(b, 1, 1),
      outStride: state.stride,
      stream: "target",
    });
    const chain = state.chain.read() as Int32Array;
    const rows = [...this.#rows];
    for (const [row, entry] of rows.entries()) {
      this.#take(entry, [chain[row * state.stride + 1] as number]);
    }
    this.#leave(rows);
  }

  async #loop(): Promise<void> {
    const { signal, onProgress } = this.#options;
    const inFlight: InFlight[] = [];
    let launched = 0;
    // Runs that end within a yield's time would together keep timers and signals out.
    await new Promise(setImmediate);
    let yieldedAt = performance.now();
    this.#stats.start();
    while (inFlight.length > 0 || (this.#rows.length > 0 && !signal?.aborted)) {
      while (inFlight.length < depth && this.#mayLaunch(inFlight.length) && !signal?.aborted) {
        inFlight.push(this.#launch(launched++, inFlight.length));
      }
      const oldest = inFlight.shift();
      if (oldest === undefined) break;
      this.#stats.waitFor(() => oldest.event.wait());
      this.#absorb(oldest, this.#decoder.buffers.read(oldest.index, oldest.rows.length));
      onProgress?.(this.#stats.newTokens);
      if (performance.now() - yieldedAt > yieldEveryMs) {
        await new Promise(setImmediate);
        yieldedAt = performance.now();
      }
    }
    this.#stats.stop();
  }

  /**
   * An iteration ahead of what was read pays only where every row is sure to need it: a row that may have finished would cost
   * the next pass its whole share, against a gap of microseconds.
   */
  #mayLaunch(inFlight: number): boolean {
    if (this.#rows.length === 0) return false;
    const possible = inFlight * (this.#decoder.gamma + 1);
    return this.#rows.every((row) => row.left > possible);
  }

  #launch(index: number, inFlight: number): InFlight {
    const { decoder } = this.#context;
    const b = this.#rows.length;
    const step = decoder.gamma + 1;
    for (const [i, row] of this.#rows.entries()) {
      decoder.ensure(i, row.length + (inFlight + 1) * step);
    }
    const selection = this.#select(b);
    const event = decoder.events[index % depth] as DeviceEvent;
    decoder.iteration.launch(b);
    event.record();
    return { index, rows: [...this.#rows], event, selection };
  }

  /** Enqueues a selection where a row is due for one. */
  #select(b: number): number | undefined {
    const { selection } = this.#decoder;
    if (selection === undefined) return undefined;
    if (!this.#rows.some((row) => row.length - row.selectedAt >= selection.every)) return undefined;
    for (const row of this.#rows) row.selectedAt = row.length;
    return selection.launch(b);
  }

  #absorb(launch: InFlight, record: IterationRecord): void {
    const { target, decoder } = this.#context;
    const lengths = launch.rows.map((row) => row.length);
    const { selection } = launch;
    const msSelect = selection === undefined ? 0 : (decoder.selection?.ms(selection) ?? 0);
    const verifyBytes =
      target.model.weightBytes +
      lengths.reduce((sum, length) => sum + length, 0) * target.model.kvBytesPerToken;
    const draftBytes = decoder.gamma * (decoder.draft?.bytesRead(lengths) ?? 0);
    this.#stats.add(record, { msSelect, draftBytes, verifyBytes });
    for (const [i, row] of launch.rows.entries()) {
      const tokens = record.tokens[i] ?? [];
      row.length += tokens.length;
      if (row.left > 0) this.#stats.countTokens(this.#take(row, tokens));
    }
    this.#leave(launch.rows);
    if (this.#options.isAborted !== undefined) this.#leaveAborted(this.#options.isAborted);
  }

  #leaveAborted(isAborted: (sequence: number) => boolean): void {
    const aborted = this.#rows.filter((row) => isAborted(row.sequence));
    for (const row of aborted) row.left = 0;
    this.#leave(aborted);
  }

  /** Hands a row's tokens out, up to its limit or an end of sequence. Returns how many. */
  #take(row: Row, tokens: readonly number[]): number {
    let kept = tokens.slice(0, row.left);
    const end = kept.findIndex((token) => this.#eos[row.sequence]?.has(token));
    if (end >= 0) kept = kept.slice(0, end + 1);
    row.left = end >= 0 ? 0 : row.left - kept.length;
    if (row.left === 0) this.#finish[row.sequence] = end >= 0 ? "eos" : "length";
    this.#tokens[row.sequence]?.push(...kept);
    if (kept.length > 0) this.#options.onTokens?.(row.sequence, kept);
    return kept.length;
  }

  /** Finished rows leave at once: their pages go back, and the last row takes their place. */
  #leave(rows: readonly Row[]): void {
    for (const row of rows) {
      if (row.left > 0) continue;
      const index = this.#rows.indexOf(row);
      if (index < 0) continue;
      const last = this.#rows.length - 1;
      this.#decoder.leave(index, last);
      this.#rows[index] = this.#rows[last] as Row;
      this.#rows.pop();
    }
  }
}

function pick(sampling: SamplingConfig | readonly SamplingConfig[], row: number): SamplingConfig {
  const chosen = Array.isArray(sampling) ? sampling[row] : sampling;
  if (chosen === undefined)
    throw new RangeError(`sampling: expected one for sequence ${row}, got none`);
  return chosen;
}

function eosOf(ids: DecodeOptions["eosTokenIds"], sequence: number): readonly number[] {
  const first = ids?.[0];
  if (first === undefined) return [];
  return typeof first === "number"
    ? (ids as readonly number[])
    : ((ids as readonly (readonly number[])[])[sequence] ?? []);
}

function limit(maxNewTokens: number | readonly number[], sequence: number): number {
  const value = typeof maxNewTokens === "number" ? maxNewTokens : maxNewTokens[sequence];
  if (value === undefined || !Number.isInteger(value) || value < 1) {
    throw new RangeError(
      `maxNewTokens: expected an integer >= 1 for each sequence, got ${value} for ${sequence}`,
    );
  }
  return value;
}

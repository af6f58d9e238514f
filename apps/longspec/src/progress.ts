import { modeLabel, type Mode } from "@magicdec/report";
import { MultiBar, type SingleBar } from "cli-progress";
import type { Watch } from "./measure.ts";

/** Where people read: bars in a terminal, plain lines in a file or pipe. */
export interface Console {
  write(text: string): void;
  readonly isTerminal: boolean;
}

const barFormat = "  {label} {bar} {percentage}% {status}";
const barWidth = 28;
const labelWidth = 30;

/**
 * Progress of a run on stderr, so that stdout holds results only. In a terminal each phase is a
 * group of bars, one a method; elsewhere a line is written when something begins.
 */
export class Progress {
  readonly #console: Console;
  #bars: MultiBar | undefined;
  #byId = new Map<string, SingleBar>();
  #current: { bar: SingleBar; before: number } | undefined;
  #turn = "";

  constructor(console: Console) {
    this.#console = console;
  }

  note(text: string): void {
    this.end();
    this.#console.write(`${text}\n`);
  }

  /** A phase of its own, e.g. prefill; the function returned takes how much of it is done. */
  phase(label: string): (done: number, total: number) => void {
    this.end();
    if (!this.#console.isTerminal) {
      this.#console.write(`${label}\n`);
      return () => {};
    }
    const bar = this.#open(label, 1);
    return (done, total) => {
      bar.setTotal(Math.max(1, total));
      bar.update(done);
    };
  }

  /** Callbacks for a measurement; each mode gets a bar a method over all its repetitions. */
  watch(options: { temperature: number; repetitions: number; signal?: AbortSignal }): Watch {
    let mode: Mode | undefined;
    return {
      ...(options.signal && { signal: options.signal }),
      onNote: (text) => this.note(text),
      onTokens: (newTokens) => {
        if (this.#current) this.#current.bar.update(this.#current.before + newTokens);
      },
      onDecode: (label, total) => {
        if (label.mode !== mode) {
          mode = label.mode;
          this.note(modeLabel(mode, options.temperature));
        }
        this.#decode(label, total, options.repetitions);
      },
    };
  }

  #decode(
    { id, repetition }: { id: string; repetition: number | "warm-up" },
    total: number,
    repetitions: number,
  ): void {
    const turn =
      repetition === "warm-up" ? repetition : `repetition ${repetition + 1} of ${repetitions}`;
    if (!this.#console.isTerminal) {
      if (turn !== this.#turn) this.#console.write(`  ${turn}\n`);
      this.#turn = turn;
      return;
    }
    const bar = this.#byId.get(id) ?? this.#open(id, total * repetitions);
    this.#byId.set(id, bar);
    if (repetition === "warm-up") {
      this.#current = undefined;
      bar.update(0, { status: turn });
      return;
    }
    bar.setTotal(total * repetitions);
    this.#current = { bar, before: total * repetition };
    bar.update(total * repetition, { status: turn });
  }

  /** Leaves the bars as they are and goes on below them. */
  end(): void {
    this.#bars?.stop();
    this.#bars = undefined;
    this.#byId = new Map();
    this.#current = undefined;
    this.#turn = "";
  }

  #open(label: string, total: number): SingleBar {
    this.#bars ??= new MultiBar({
      format: barFormat,
      barsize: barWidth,
      barCompleteChar: "█",
      barIncompleteChar: "░",
      hideCursor: true,
      stream: process.stderr,
      gracefulExit: false,
    });
    return this.#bars.create(total, 0, { label: label.padEnd(labelWidth), status: "" });
  }
}

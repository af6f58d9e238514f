import {
  assumedTableText,
  createResultsFolder,
  removeIfEmpty,
  resultTables,
} from "@magicdec/report";
import { exitCodes } from "./errors.ts";
import { mismatchMessage } from "./identity.ts";
import { measure, type Measurement, type Work } from "./measure.ts";
import type { Options } from "./options.ts";
import { profileMethods } from "./profile.ts";
import { Progress } from "./progress.ts";
import { toManifest, writeRun } from "./results.ts";
import { type Setup, setUp } from "./setup.ts";
import type { Terminal } from "./terminal.ts";

/**
 * The commands longspec, baseline and selfspec: prefill once, decode with every method, check, and
 * write the results. Resolves with the exit code.
 */
export async function runBenchmark(
  options: Options,
  terminal: Terminal,
  signal: AbortSignal,
  prepare: typeof setUp = setUp,
): Promise<number> {
  const folder = createResultsFolder(options.results);
  const progress = new Progress(terminal.progress);
  try {
    using setup = await prepare(options, progress);
    return await runLoaded(options, setup, { folder, progress, terminal, signal });
  } finally {
    progress.end();
    removeIfEmpty(folder);
  }
}

interface Place {
  folder: string;
  progress: Progress;
  terminal: Terminal;
  signal: AbortSignal;
}

async function runLoaded(options: Options, setup: Setup, place: Place): Promise<number> {
  const { folder, progress, terminal, signal } = place;
  const startedAt = new Date();
  const prompts = setup.prompts(options.prefixLens);
  const needDraft = options.methods.some((method) => method.method === "model");
  const prefill = await prefillOrStop(setup, prompts, needDraft, options, place);
  const measured =
    prefill === undefined
      ? nothing
      : await measure(
          setup.engine,
          toWork(options, setup, prompts),
          progress.watch({ ...options, signal }),
        );
  progress.end();
  const profile =
    options.profile && !signal.aborted && prefill !== undefined
      ? profileMethods(setup.engine, toWork(options, setup, prompts), measured.rows)
      : undefined;
  // After a skipped prefill no pass of its own would see the same caches.
  if (!options.skipPrefill) await addLogits(setup, measured);
  const manifest = toManifest(options, measured, {
    profile,
    device: setup.device,
    threads: setup.threads,
    pageSize: setup.pageSize,
    prefill: prefill ?? { ms: 0, tokens: 0 },
    startedAt,
    folder,
  });
  writeRun(manifest);
  const { report } = manifest;
  if (options.printOutput) printTexts(setup, measured, terminal);
  if (options.json) {
    terminal.result(JSON.stringify(report));
  } else {
    const { temperature, showPhases } = options;
    const color = terminal.color;
    terminal.text(resultTables(report.results, { temperature, color, phases: showPhases }));
    const { assumed = [] } = report;
    if (assumed.length > 0) {
      terminal.text(`\n${assumedTableText(assumed, { temperature, color })}`);
    }
    terminal.text(`\n${report.conclusion}\nresults: ${folder}\n`);
  }
  for (const mismatch of measured.mismatches) terminal.error(mismatchMessage(mismatch));
  if (measured.mismatches.length > 0) return exitCodes.failed;
  return measured.partial ? exitCodes.interrupted : exitCodes.ok;
}

/** Nothing was decoded: the run was stopped in prefill. */
const nothing: Measurement = {
  rows: [],
  samples: [],
  mismatches: [],
  mismatchContexts: [],
  seeds: [],
  partial: true,
  text: [],
};

/** What the target thought of both tokens of each mismatch: whoever looks for its cause starts there. */
async function addLogits(setup: Setup, measured: Measurement): Promise<void> {
  for (const [i, mismatch] of measured.mismatches.entries()) {
    const logits = await setup.engine.logitsAfter(measured.mismatchContexts[i] as Int32Array);
    mismatch.expectedLogit = logits[mismatch.expectedToken ?? -1] ?? null;
    mismatch.actualLogit = logits[mismatch.actualToken ?? -1] ?? null;
  }
}

/** Prefill with a bar, or caches of noise; undefined when the signal came first. */
export async function prefillOrStop(
  setup: Setup,
  prompts: Int32Array[],
  needDraft: boolean,
  { skipPrefill, seed }: Pick<Options, "skipPrefill" | "seed">,
  { progress, signal }: Pick<Place, "progress" | "signal">,
): Promise<{ ms: number; tokens: number } | undefined> {
  if (skipPrefill) {
    progress.note("no prefill: the caches hold seeded noise");
    const lengths = prompts.map((prompt) => prompt.length);
    setup.engine.skipPrefill(lengths, { needDraft, seed });
    return { ms: 0, tokens: 0 };
  }
  const onProgress = progress.phase(`prefill ${prompts.length} sequences`);
  try {
    return await setup.engine.prefill(prompts, { needDraft, onProgress, signal });
  } catch (error) {
    if (signal.aborted) return undefined;
    throw error;
  }
}

/** The work of a measurement over `prompts` with everything else as the options say. */
export function toWork(options: Options, setup: Setup, prompts: Int32Array[]): Work {
  const { temperature, topK, topP, minP, seed } = options;
  return {
    ...options,
    prompts,
    sampling: { temperature, topK, topP, minP, seed },
    eosTokenIds: options.stopAtEos ? setup.tokenizer.eosIds : [],
  };
}

function printTexts(setup: Setup, measured: Measurement, terminal: Terminal): void {
  for (const [sequence, tokens] of measured.text.entries()) {
    terminal.text(
      `--- sequence ${sequence}\n${setup.tokenizer.decode(tokens, { midText: true })}\n`,
    );
  }
}

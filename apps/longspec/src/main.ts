#!/usr/bin/env bun
import { parseArgv } from "./argv.ts";
import { exitCodes, UsageError } from "./errors.ts";
import { printHelp } from "./help.ts";
import { resolveOptions } from "./options.ts";
import { runPlan } from "./plan.ts";
import { runBenchmark } from "./run.ts";
import { runSweep } from "./sweep.ts";
import { processTerminal, type Terminal } from "./terminal.ts";

process.exitCode = await main(process.argv.slice(2));

/** Runs one command line; resolves with the exit code. */
async function main(argv: string[]): Promise<number> {
  const terminal = processTerminal(argv.includes("--json"));
  try {
    const { command, values, help } = parseArgv(argv);
    if (help) {
      printHelp(command);
      return exitCodes.ok;
    }
    const options = resolveOptions(command, values);
    const signal = stopOnInterrupt(terminal);
    if (command === "plan") return await runPlan(options, terminal);
    if (command === "sweep") return await runSweep(options, terminal, signal);
    return await runBenchmark(options, terminal, signal);
  } catch (error) {
    return showError(error, terminal);
  }
}

/** The first Ctrl-C asks for an orderly end with partial results, the second ends at once. */
function stopOnInterrupt(terminal: Terminal): AbortSignal {
  const controller = new AbortController();
  process.on("SIGINT", () => {
    if (controller.signal.aborted) process.exit(exitCodes.interrupted);
    controller.abort();
    terminal.progress.write("\nstopping after this iteration; Ctrl-C again to drop the results\n");
  });
  return controller.signal;
}

/** One message for bad input; a stack only for what is a fault of this program. */
function showError(thrown: unknown, terminal: Terminal): number {
  const error = firstError(thrown);
  if (!(error instanceof Error)) throw error;
  const fault = error instanceof TypeError || error instanceof ReferenceError;
  terminal.error(fault ? (error.stack ?? error.message) : error.message);
  return error instanceof UsageError ? exitCodes.usage : exitCodes.failed;
}

/** What went wrong first, where closing things then failed too. */
function firstError(error: unknown): unknown {
  return error instanceof SuppressedError ? firstError(error.suppressed) : error;
}

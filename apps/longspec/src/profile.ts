import type { IterationProfile, Mode, ResultRow } from "@magicdec/report";
import type { BenchEngine, SamplingConfig } from "./engine.ts";
import { speculationConfig } from "./methods.ts";
import type { Work } from "./measure.ts";

/** How the engine counts the phases of an iteration. */
const phases = { 1: "draft", 2: "verify", 3: "decide", 4: "decide" } as const;

/** Profiles one iteration of every method of the first mode that was measured. */
export function profileMethods(
  engine: BenchEngine,
  work: Work,
  rows: readonly ResultRow[],
): IterationProfile[] {
  const mode = rows[0]?.mode;
  if (mode === undefined) return [];
  return rows.filter((row) => row.mode === mode).map((row) => profileMethod(engine, work, row));
}

function profileMethod(engine: BenchEngine, work: Work, row: ResultRow): IterationProfile {
  const { mode, method, cache, budget, gamma } = row;
  const longest = Math.max(...work.prompts.map((prompt) => prompt.length)) + work.genLen;
  const speculation = speculationConfig(row, mode, { ...work, longest });
  const { ops, msClock } = engine.profile(speculation, samplingOf(work, mode));
  const parts = new Map<string, IterationProfile["parts"][number]>();
  for (const { phase: index, kind, ms } of ops) {
    const phase = phases[index as keyof typeof phases] ?? "draft";
    const key = `${phase} ${kind}`;
    const known = parts.get(key) ?? { phase, kind, ops: 0, ms: 0 };
    parts.set(key, { ...known, ops: known.ops + 1, ms: known.ms + ms });
  }
  const msReplayed = gamma * row.msDraft + row.msVerify + row.msAccept + row.msSelect + row.msOther;
  return { mode, method, cache, budget, gamma, msClock, parts: [...parts.values()], msReplayed };
}

function samplingOf({ sampling }: Work, mode: Mode): SamplingConfig {
  return mode === "greedy" ? { ...sampling, temperature: 0 } : sampling;
}

import type { CacheName, Mode } from "@magicdec/report";
import type { SpeculationConfig } from "./engine.ts";

/** A way to decode: who drafts, over which cache, how far ahead. `budget` null reads everything. */
export interface MethodChoice {
  method: "baseline" | "self" | "model";
  cache: CacheName | null;
  gamma: number | "auto";
  budget: number | null;
}

export const baseline: MethodChoice = { method: "baseline", cache: null, gamma: 0, budget: null };

/** Draft caches that make sense: the target drafting over its own full cache saves nothing. */
export const cachesOf = {
  self: ["streaming", "snapkv"],
  model: ["full", "streaming", "snapkv"],
} as const satisfies Record<"self" | "model", readonly CacheName[]>;

/**
 * Gamma and budget when none is asked for, from sweeps with the embedded pair at 8 x 8000: up to
 * six rows a sequence verify at about the price of one, so sparse drafts go five tokens ahead. A
 * draft that reads a full cache costs a large part of a target step and stops earlier.
 */
export const standardBudget = 256;
export function standardGamma(cache: CacheName): number {
  return cache === "full" ? 2 : 5;
}

/** Acceptance rates of the embedded pair on its default work, for plans that measure nothing. */
export const standardAlpha = { self: 0.83, model: 0.65 } as const;

/** The settings of an engine's decode for a method in a mode; `gamma` is resolved here. */
export function speculationConfig(
  choice: MethodChoice & { gamma: number },
  mode: Mode,
  settings: { sinks: number; windowSize: number; reselectEvery: number; longest: number },
): SpeculationConfig {
  return {
    method: choice.method === "baseline" ? "off" : choice.method,
    cache: choice.cache ?? "full",
    gamma: choice.gamma,
    budget: choice.budget ?? settings.longest,
    sinks: settings.sinks,
    window: settings.windowSize,
    reselectEvery: settings.reselectEvery,
    rule: mode === "rejection" && choice.method !== "baseline" ? "rejection" : "match",
  };
}

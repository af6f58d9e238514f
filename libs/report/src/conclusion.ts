import {
  type AssumedSpeedup,
  methodLabel,
  modeLabel,
  type Mismatch,
  type Mode,
  type ResultRow,
} from "./schema.ts";

/** What the conclusion needs to know of a run. */
export interface Findings {
  results: readonly ResultRow[];
  mismatches: readonly Mismatch[];
  partial: boolean;
  temperature: number;
  /** Sequences, and the longest prompt in tokens. */
  batch: number;
  prefixLen: number;
  /** There with random weights: what else can be said of a run whose text means nothing. */
  assumed?: readonly AssumedSpeedup[] | undefined;
}

/**
 * Says in plain words what the figures mean: the best method of the first mode, whether the text
 * changed, and where the gain comes from, or that there is none.
 */
export function conclude(findings: Findings): string {
  const first = findings.assumed === undefined ? outcome(findings) : timesOnly(findings);
  return [first, identity(findings), interruption(findings)]
    .filter((sentence) => sentence !== "")
    .join(" ");
}

function outcome(findings: Findings): string {
  const [first, ...others] = bestByMode(findings.results);
  if (first === undefined) return baselineOnly(findings);
  const where = `${findings.batch} x ${findings.prefixLen} tokens of context`;
  const when = modeLabel(first.mode, findings.temperature);
  const how = `${methodLabel(first)} (gamma ${first.gamma})`;
  if (first.speedup <= 1) {
    return (
      `With ${where} no draft pays at ${when}: the best, ${how}, runs at ` +
      `${times(first.speedup)} the baseline's speed, because an iteration costs more than its ` +
      `${first.acceptanceLength.toFixed(2)} tokens save.`
    );
  }
  const rest = others.map((row) => {
    const mode = modeLabel(row.mode, findings.temperature);
    const same = methodLabel(row) === methodLabel(first) && row.gamma === first.gamma;
    return `${times(row.speedup)} at ${mode}${same ? "" : ` (${methodLabel(row)})`}`;
  });
  const also = rest.length > 0 ? `, ${rest.join(" and ")}` : "";
  return (
    `With ${where}, ${how} decodes ${times(first.speedup)} as fast as the baseline of this run ` +
    `at ${when}${also}: one pass over the full cache yields ` +
    `${first.acceptanceLength.toFixed(2)} tokens a sequence instead of 1.`
  );
}

/** Random weights: the times of the method that is best at the rate in the middle. */
function timesOnly({ assumed = [], batch, prefixLen, results }: Findings): string {
  const rateOf = (one: AssumedSpeedup) => one.byAlpha[Math.floor(one.byAlpha.length / 2)];
  const best = assumed.reduce<AssumedSpeedup | undefined>((known, one) => {
    const better = (rateOf(one)?.speedup ?? 0) > ((known && rateOf(known)?.speedup) ?? 0);
    return better ? one : known;
  }, undefined);
  const warning = "The weights are random: times mean something, acceptance and text do not.";
  const target = results[0]?.msTarget ?? 0;
  const where = `With ${batch} x ${prefixLen} tokens of context a step takes ${target.toFixed(2)} ms`;
  const rate = best && rateOf(best);
  if (best === undefined || rate === undefined) return `${warning} ${where}.`;
  return (
    `${warning} ${where}, an iteration of ${methodLabel(best)} (gamma ${best.gamma}) ` +
    `${best.msIteration.toFixed(2)} ms: at an acceptance rate of ${rate.alpha} that would decode ` +
    `${times(rate.speedup)} as fast.`
  );
}

function baselineOnly({ results }: Findings): string {
  const baseline = results.find((row) => row.method === "baseline");
  if (baseline === undefined) return "Nothing was measured.";
  return (
    `Decoding without speculation yields ${baseline.tokensPerSecond.toFixed(0)} tokens/s and ` +
    `uses ${percent(baseline.limitShare)} of this machine's memory bandwidth.`
  );
}

function identity({ results, mismatches }: Findings): string {
  const first = mismatches[0];
  if (first !== undefined) {
    return (
      `WRONG: ${first.id} left the baseline's text in mode ${first.mode} at sequence ` +
      `${first.sequence}, new token ${first.position}; its figures mean nothing.`
    );
  }
  const checked = results.filter((row) => row.identical === true);
  if (checked.length === 0) return "";
  const modes = [...new Set(checked.map((row) => row.mode))].join(" and ");
  return `Every token of the ${modes} runs is the baseline's.`;
}

function interruption({ partial }: Findings): string {
  return partial ? "The run was interrupted: the figures cover what was finished." : "";
}

/** The fastest speculating row of each mode, in the order of the modes. */
function bestByMode(results: readonly ResultRow[]): ResultRow[] {
  const best = new Map<Mode, ResultRow>();
  for (const row of results) {
    if (row.method === "baseline") continue;
    const known = best.get(row.mode);
    if (known === undefined || row.speedup > known.speedup) best.set(row.mode, row);
  }
  return [...best.values()];
}

function times(ratio: number): string {
  return `${ratio.toFixed(2)} times`;
}

function percent(ratio: number): string {
  return `${(100 * ratio).toFixed(0)} %`;
}

import { methodLabel, type ResultRow } from "./schema.ts";

/** A column of a results table: its heading and the text of its cell. */
export interface Column {
  heading: string;
  align: "left" | "right";
  cell: (row: ResultRow) => string;
}

const nothing = "-";
const method: Column = { heading: "method", align: "left", cell: methodLabel };
const gamma: Column = {
  heading: "gamma",
  align: "right",
  cell: (row) => (row.method === "baseline" ? nothing : String(row.gamma)),
};

/** What a method yields: speed, acceptance, and whether the text can be trusted. */
export const outcomeColumns: readonly Column[] = [
  method,
  gamma,
  {
    heading: "tokens/s",
    align: "right",
    cell: (row) => withDeviation(row, row.tokensPerSecond, row.tokensPerSecondDeviation, 0),
  },
  { heading: "ms/token", align: "right", cell: (row) => row.msPerToken.toFixed(2) },
  {
    heading: "speed-up",
    align: "right",
    cell: (row) =>
      row.method === "baseline" ? "1" : withDeviation(row, row.speedup, row.speedupDeviation, 2),
  },
  {
    heading: "accept.\nlength",
    align: "right",
    cell: (row) => speculating(row, row.acceptanceLength.toFixed(2)),
  },
  { heading: "accept.\nrate", align: "right", cell: (row) => shareText(row.acceptanceRate) },
  {
    heading: "by position",
    align: "left",
    cell: (row) => speculating(row, positionsText(row.acceptanceByPosition)),
  },
  { heading: "distinct\n4-grams", align: "right", cell: (row) => shareText(row.distinct4) },
  { heading: "lookup\nwould", align: "right", cell: (row) => shareText(row.lookupAcceptance) },
  { heading: "identical", align: "left", cell: identityText },
];

/** Where the time of an iteration goes. */
export const phaseColumns: readonly Column[] = [
  method,
  gamma,
  { heading: "T_T\nms", align: "right", cell: (row) => row.msTarget.toFixed(2) },
  {
    heading: "T_D\nms",
    align: "right",
    cell: (row) => speculating(row, row.msDraft.toFixed(2)),
  },
  {
    heading: "T_V\nms",
    align: "right",
    cell: (row) => speculating(row, row.msVerify.toFixed(2)),
  },
  {
    heading: "accept\nms",
    align: "right",
    cell: (row) => speculating(row, row.msAccept.toFixed(2)),
  },
  {
    heading: "select\nms",
    align: "right",
    cell: (row) => speculating(row, row.msSelect.toFixed(2)),
  },
  { heading: "rest\nms", align: "right", cell: (row) => row.msOther.toFixed(2) },
  { heading: "host\nms", align: "right", cell: (row) => row.msHost.toFixed(2) },
  {
    heading: "share of\nbandwidth limit",
    align: "right",
    cell: (row) => `${(100 * row.limitShare).toFixed(0)} %`,
  },
  {
    heading: "speed-up by\nthe equation",
    align: "right",
    cell: (row) => (row.predictedSpeedup === null ? nothing : row.predictedSpeedup.toFixed(2)),
  },
];

/** What the headings mean, for the foot of a table. */
export const columnNotes: readonly string[] = [
  "acceptance length: tokens an iteration yields for a sequence, the bonus token included; " +
    "rate: the alpha that gives it",
  "identical: every token is the baseline's; rejection promises the same distribution only",
  "by position: chance that the i-th drafted token is accepted, those before it being accepted",
  "distinct 4-grams, lookup: how little the text repeats, and the share that a 3-gram lookup " +
    "would guess (loops flatter a draft)",
  "T_T: baseline step; T_D: one draft step; T_V: one verify pass; accept, select, rest and host: " +
    "an iteration",
];

function speculating(row: ResultRow, text: string): string {
  return row.method === "baseline" ? nothing : text;
}

function withDeviation(row: ResultRow, value: number, spread: number, digits: number): string {
  const text = value.toFixed(digits);
  return row.repetitions === 1 ? text : `${text} ±${spread.toFixed(digits)}`;
}

/** 0.875 as ".88", 1 as "1.0": positions stand side by side, so a digit less counts. */
function shareText(value: number | null): string {
  if (value === null) return nothing;
  return value >= 0.995 ? "1.0" : value.toFixed(2).slice(1);
}

const positionsShown = 4;

function positionsText(shares: readonly number[]): string {
  const shown = shares.slice(0, positionsShown).map(shareText).join(" ");
  return shares.length > positionsShown ? `${shown} ...` : shown;
}

function identityText(row: ResultRow): string {
  if (row.method === "baseline") return nothing;
  if (row.identical === null) return "in distr.";
  return row.identical ? "yes" : "NO";
}

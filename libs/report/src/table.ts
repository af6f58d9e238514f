import Table from "cli-table3";
import { assumedCaption, assumedTable } from "./assumed.ts";
import { type Column, columnNotes, outcomeColumns, phaseColumns } from "./columns.ts";
import { type AssumedSpeedup, modeLabel, type Mode, type ResultRow } from "./schema.ts";

/** How to draw a table in a terminal. */
export interface TableOptions {
  temperature: number;
  /** ANSI colours; off for files and pipes. */
  color: boolean;
  /** Adds the second table: the time of an iteration by phase. */
  phases: boolean;
}

/** The results as one or two tables, each with a section a mode; at most 130 columns wide. */
export function resultTables(rows: readonly ResultRow[], options: TableOptions): string {
  const parts = [drawTable(rows, outcomeColumns, options)];
  if (options.phases) parts.push(drawTable(rows, phaseColumns, options));
  return `${parts.join("\n")}\n${columnNotes.map((note) => `  ${note}`).join("\n")}\n`;
}

/** The table of assumed acceptance for a terminal. */
export function assumedTableText(
  assumed: readonly AssumedSpeedup[],
  { temperature, color }: Pick<TableOptions, "temperature" | "color">,
): string {
  const { headings, rows } = assumedTable(assumed, temperature);
  const table = new Table({
    head: headings,
    colAligns: headings.map((_, column) => (column < 2 ? "left" : "right")),
    chars: bare,
    style: { head: color ? ["bold"] : [], border: [] },
  });
  table.push(...rows);
  const caption = assumedCaption.replaceAll(/(.{1,118})(?: |$)/g, "  $1\n");
  return `${table.toString()}\n${caption}`;
}

/** No lines but one a section: what is read is columns of figures. */
const bare = Object.fromEntries(
  ["top", "bottom", "left", "right", "mid"]
    .flatMap((side) => [side, `${side}-mid`, `${side}-left`, `${side}-right`])
    .concat("mid-mid", "middle", "left-mid", "right-mid")
    .map((name) => [name, ""]),
);

function drawTable(
  rows: readonly ResultRow[],
  columns: readonly Column[],
  options: TableOptions,
): string {
  const table = new Table({
    head: columns.map((column) => column.heading),
    colAligns: columns.map((column) => column.align),
    chars: bare,
    style: { head: options.color ? ["bold"] : [], border: [] },
  });
  const sections = rowsByMode(rows);
  for (const section of sections.values()) {
    const fastest = Math.max(...section.map((row) => row.speedup));
    for (const row of section) {
      const wins = options.color && row.method !== "baseline" && row.speedup === fastest;
      table.push(columns.map((column) => (wins ? bold(column.cell(row)) : column.cell(row))));
    }
  }
  const lines = table.toString().split("\n");
  const width = Math.max(...lines.map((line) => Bun.stringWidth(line)));
  const drawn = lines.splice(0, lines.length - rows.length);
  for (const [mode, section] of sections) {
    drawn.push(`── ${modeLabel(mode, options.temperature)} `.padEnd(width, "─"));
    drawn.push(...lines.splice(0, section.length));
  }
  return `${drawn.join("\n")}\n`;
}

/** Groups rows by mode in the order in which modes first appear. */
export function rowsByMode(rows: readonly ResultRow[]): Map<Mode, ResultRow[]> {
  return Map.groupBy(rows, (row) => row.mode);
}

function bold(text: string): string {
  return `\u001b[1m${text}\u001b[22m`;
}

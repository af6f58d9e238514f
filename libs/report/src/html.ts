import { assumedCaption, assumedTable } from "./assumed.ts";
import { type Column, columnNotes, outcomeColumns, phaseColumns } from "./columns.ts";
import { heatMapChart } from "./heatmap.ts";
import { factLines, reportTitle } from "./markdown.ts";
import { type Chart, profileChart, runCharts } from "./plots.ts";
import {
  type LongspecReport,
  modeLabel,
  type ResultRow,
  type RunManifest,
  type SweepReport,
} from "./schema.ts";
import { rowsByMode } from "./table.ts";

/** The file report.html of a run: one page with its styles and SVG charts, nothing fetched. */
export function htmlReport(manifest: RunManifest): string {
  const { report } = manifest;
  const { temperature } = report.config;
  const { profile = [] } = report;
  const tables = [...rowsByMode(report.results)].flatMap(([mode, rows]) => [
    `<h3>${escaped(modeLabel(mode, temperature))}</h3>`,
    htmlTable(rows, outcomeColumns),
    htmlTable(rows, phaseColumns),
  ]);
  return page(reportTitle(report), [
    `<p class="conclusion">${escaped(report.conclusion)}</p>`,
    ...runCharts(report.results, temperature).map(chartSection),
    ...(profile.length > 0 ? [chartSection(profileChart(profile, temperature))] : []),
    ...assumedSection(report),
    "<h2>Tables</h2>",
    ...tables,
    `<ul class="notes">${columnNotes.map((note) => `<li>${escaped(note)}</li>`).join("")}</ul>`,
    "<h2>Run</h2>",
    factTable(factLines(manifest)),
  ]);
}

function assumedSection({ assumed = [], config }: LongspecReport): string[] {
  if (assumed.length === 0) return [];
  const { headings, rows } = assumedTable(assumed, config.temperature);
  return [
    "<h2>Speed-up by assumed acceptance</h2>",
    tableOf(headings, rows),
    `<p class="caption">${escaped(assumedCaption)}</p>`,
  ];
}

/** The file report.html of a sweep: the heat map and every cell. */
export function htmlSweep(report: SweepReport): string {
  const cells = report.cells.filter((cell) => cell.row.method !== "baseline");
  const place: readonly [string, (cell: SweepReport["cells"][number]) => string][] = [
    ["B", (cell) => String(cell.batch)],
    ["prefix", (cell) => String(cell.prefixLen)],
    ["mode", (cell) => cell.row.mode],
  ];
  const rows = cells.map((cell) => [
    ...place.map(([, text]) => text(cell)),
    ...outcomeColumns.map((column) => column.cell(cell.row)),
  ]);
  const headings = [...place.map(([name]) => name), ...outcomeColumns.map((c) => c.heading)];
  return page(`Sweep of long-context speculation${report.partial ? " (partial)" : ""}`, [
    `<p class="conclusion">${escaped(report.conclusion)}</p>`,
    ...(cells.length > 0 ? [chartSection(heatMapChart(cells))] : []),
    "<h2>Cells</h2>",
    tableOf(headings, rows),
  ]);
}

function chartSection(chart: Chart): string {
  return (
    `<section id="${chart.id}"><h2>${escaped(chart.title)}</h2>` +
    `<div class="chart">${chart.svg}</div>` +
    `<p class="caption">${escaped(chart.caption)}</p></section>`
  );
}

function htmlTable(rows: readonly ResultRow[], columns: readonly Column[]): string {
  return tableOf(
    columns.map((column) => column.heading),
    rows.map((row) => columns.map((column) => column.cell(row))),
  );
}

function tableOf(headings: readonly string[], rows: readonly string[][]): string {
  const head = headings.map((text) => `<th>${escaped(text)}</th>`).join("");
  const body = rows
    .map((cells) => `<tr>${cells.map((text) => `<td>${escaped(text)}</td>`).join("")}</tr>`)
    .join("\n");
  const table = `<table><thead><tr>${head}</tr></thead><tbody>${body}</tbody></table>`;
  return `<div class="scroll">${table}</div>`;
}

function factTable(facts: readonly [string, string][]): string {
  const rows = facts.map(
    ([name, value]) => `<dt>${escaped(name)}</dt><dd>${escaped(value.replaceAll("`", ""))}</dd>`,
  );
  return `<dl>${rows.join("")}</dl>`;
}

function page(title: string, body: readonly string[]): string {
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${escaped(title)}</title>
<style>${style}</style>
</head>
<body>
<main>
<h1>${escaped(title)}</h1>
${body.join("\n")}
</main>
</body>
</html>
`;
}

const style = `
:root { color-scheme: light dark;
  --paper: #fbfbfa; --ink: #1d2126; --soft: #666d76; --line: #d9dcdf; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181d; --ink: #e4e6e9; --soft: #9aa1aa; --line: #343940; }
}
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 32px 24px 64px; }
h1 { font-size: 28px; line-height: 1.2; }
h2 { font-size: 20px; margin: 40px 0 8px; }
h3 { font-size: 16px; margin: 28px 0 8px; }
.conclusion { font-size: 18px; }
.caption, .notes, dt { color: var(--soft); font-size: 14px; }
.chart svg { max-width: 100%; height: auto; }
.chart figure { margin: 0; }
.chart [class*="swatches"] { font-family: inherit !important; font-size: 13px !important; }
.scroll { overflow-x: auto; margin: 8px 0 16px; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th { white-space: pre; vertical-align: bottom; font-weight: 600; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 4px 16px; font-size: 14px; }
dd { margin: 0; overflow-wrap: anywhere; }
`;

function escaped(text: string): string {
  return Bun.escapeHTML(text);
}

import { assumedCaption, assumedTable } from "./assumed.ts";
import { type Column, columnNotes, outcomeColumns, phaseColumns } from "./columns.ts";
import { modeLabel, type LongspecReport, type ResultRow, type RunManifest } from "./schema.ts";
import { rowsByMode } from "./table.ts";

/** The file report.md: what was run, on what, and the tables of every mode. */
export function markdownReport(manifest: RunManifest): string {
  const { report } = manifest;
  const sections = [...rowsByMode(report.results)].map(([mode, rows]) =>
    [
      `## ${capitalised(modeLabel(mode, report.config.temperature))}`,
      markdownTable(rows, outcomeColumns),
      markdownTable(rows, phaseColumns),
    ].join("\n\n"),
  );
  return `${[
    `# ${reportTitle(report)}`,
    report.conclusion,
    factLines(manifest)
      .map(([name, value]) => `- ${name}: ${value}`)
      .join("\n"),
    ...assumedSection(report),
    ...sections,
    columnNotes.map((note) => `- ${note}`).join("\n"),
  ].join("\n\n")}\n`;
}

export function reportTitle(report: LongspecReport): string {
  const interrupted = report.partial ? " (partial: the run was interrupted)" : "";
  return `Speculative decoding of long contexts${interrupted}`;
}

/** Machine, settings and origin of a run as pairs for people. */
export function factLines(manifest: RunManifest): [string, string][] {
  const { machine, config, prefill } = manifest.report;
  const prefixes = [...new Set(config.prefixLens)].join(", ");
  const versions = Object.entries(manifest.versions).map(([name, value]) => `${name} ${value}`);
  const git = manifest.git;
  return [
    ["machine", `${machine.cpu}, ${machine.cores} cores, ${gigabytes(machine.memoryBytes)}`],
    [
      "ran on",
      `${machine.device}, ${machine.threads === 0 ? "" : `${machine.threads} threads, `}` +
        `${machine.bandwidthGBs.toFixed(1)} GB/s read bandwidth measured in this run`,
    ],
    ["models", config.draft === null ? config.target : `${config.target}; draft ${config.draft}`],
    [
      "work",
      `${config.dataset}: ${config.batch} sequences x ${prefixes} prompt tokens + ` +
        `${config.genLen} new tokens`,
    ],
    [
      "prefill",
      config.prefillSkipped
        ? "skipped: the caches held seeded noise"
        : `${(prefill.ms / 1000).toFixed(1)} s, ${prefill.tokensPerSecond.toFixed(0)} tokens/s`,
    ],
    ["repetitions", `${config.repetitions}, seeds ${manifest.seeds.join(", ")}`],
    ["command", `\`${manifest.commandLine}\``],
    ["commit", git === null ? "none" : `${git.commit}${git.dirty ? " with changes" : ""}`],
    ["versions", [machine.os, machine.arch, ...versions].join(", ")],
    ["time", `${manifest.startedAt} to ${manifest.finishedAt}`],
  ];
}

function assumedSection({ assumed = [], config }: LongspecReport): string[] {
  if (assumed.length === 0) return [];
  const { headings, rows } = assumedTable(assumed, config.temperature);
  const aligns = headings.map((_, column) => (column < 2 ? "---" : "---:"));
  return ["## Speed-up by assumed acceptance", assumedCaption, tableLines(headings, aligns, rows)];
}

function markdownTable(rows: readonly ResultRow[], columns: readonly Column[]): string {
  return tableLines(
    columns.map((column) => column.heading),
    columns.map((column) => (column.align === "right" ? "---:" : "---")),
    rows.map((row) => columns.map((column) => column.cell(row))),
  );
}

function tableLines(headings: string[], aligns: string[], rows: string[][]): string {
  const line = (cells: string[]) => `| ${cells.join(" | ")} |`;
  return [
    line(headings.map((heading) => heading.replaceAll("\n", " "))),
    line(aligns),
    ...rows.map(line),
  ].join("\n");
}

function gigabytes(bytes: number): string {
  return `${(bytes / 2 ** 30).toFixed(0)} GiB`;
}

function capitalised(text: string): string {
  return text.charAt(0).toUpperCase() + text.slice(1);
}

import * as Plot from "@observablehq/plot";
import { type Chart, draw } from "./plots.ts";
import { methodLabel, type SweepCell } from "./schema.ts";

/** The best cell of a batch and prefix: the gamma and budget that gained most there. */
interface BestCell {
  group: string;
  batch: number;
  prefixLen: number;
  speedup: number;
  gamma: number;
  budget: number | null;
}

/**
 * Speed-up over B x prefix as text, one grid a method, each cell the best over gamma and budget.
 * With colour, losing cells are red and winning cells green.
 */
export function terminalHeatMap(cells: readonly SweepCell[], color: boolean): string {
  return [...Map.groupBy(bestCells(cells), (cell) => cell.group)]
    .map(([group, best]) => `${group}\n${terminalGrid(best, color)}`)
    .join("\n\n");
}

function terminalGrid(best: readonly BestCell[], color: boolean): string {
  const prefixes = ascending(best.map((cell) => cell.prefixLen));
  const batches = ascending(best.map((cell) => cell.batch));
  const width = 15;
  const heading =
    "  B \\ prefix" + prefixes.map((prefix) => String(prefix).padStart(width)).join("");
  const lines = batches.map((batch) => {
    const row = prefixes.map((prefix) => {
      const cell = best.find((one) => one.batch === batch && one.prefixLen === prefix);
      return paint(cellText(cell).padStart(width), cell?.speedup, color);
    });
    return String(batch).padStart(12) + row.join("");
  });
  return [heading, ...lines].join("\n");
}

function cellText(cell: BestCell | undefined): string {
  return cell === undefined ? "." : `${cell.speedup.toFixed(2)} (g${cell.gamma})`;
}

function paint(text: string, speedup: number | undefined, color: boolean): string {
  if (!color || speedup === undefined) return text;
  return `\u001b[${speedup >= 1.05 ? 32 : speedup <= 0.95 ? 31 : 33}m${text}\u001b[39m`;
}

/** The same as an SVG chart, one facet a method. */
export function heatMapChart(cells: readonly SweepCell[]): Chart {
  const best = bestCells(cells);
  const groups = [...new Set(best.map((cell) => cell.group))];
  const largest = Math.max(...best.map((cell) => Math.abs(Math.log2(cell.speedup))), 0.1);
  return {
    id: "heatmap",
    title: "Speed-up over the baseline by batch and prefix",
    caption: "Each cell is the best over gamma and budget there; losing cells are shown too.",
    svg: draw({
      height: 80 + 46 * groups.length * new Set(best.map((cell) => cell.batch)).size,
      marginLeft: 60,
      marginRight: 190,
      x: {
        label: "prompt tokens a sequence",
        type: "band",
        domain: ascending(best.map((c) => c.prefixLen)),
      },
      y: { label: "batch", type: "band", domain: ascending(best.map((cell) => cell.batch)) },
      fy: { label: null, domain: groups },
      color: {
        // No legend: each cell carries its number, and Plot's ramp needs a canvas.
        type: "diverging",
        scheme: "PiYG",
        // Twice the range: the ends of the scheme are too dark to write on.
        domain: [-2 * largest, 2 * largest],
      },
      marks: [
        Plot.cell(best, {
          x: "prefixLen",
          y: "batch",
          fy: "group",
          fill: (cell: BestCell) => Math.log2(cell.speedup),
          inset: 1,
          rx: 3,
        }),
        Plot.text(best, {
          x: "prefixLen",
          y: "batch",
          fy: "group",
          text: chartCellText,
          fill: "#16181d",
        }),
      ],
    }),
  };
}

function chartCellText({ speedup, gamma, budget }: BestCell): string {
  const settings = budget === null ? `gamma ${gamma}` : `gamma ${gamma}, ${budget}`;
  return `${speedup.toFixed(2)}  (${settings})`;
}

function bestCells(cells: readonly SweepCell[]): BestCell[] {
  const best = new Map<string, BestCell>();
  for (const { batch, prefixLen, row } of cells) {
    if (row.method === "baseline") continue;
    const group = `${methodLabel({ ...row, budget: null })}, ${row.mode}`;
    const key = `${group} ${batch} ${prefixLen}`;
    const known = best.get(key);
    if (known !== undefined && known.speedup >= row.speedup) continue;
    best.set(key, { group, batch, prefixLen, ...pickCell(row) });
  }
  return [...best.values()];
}

function pickCell(row: SweepCell["row"]): Pick<BestCell, "speedup" | "gamma" | "budget"> {
  return { speedup: row.speedup, gamma: row.gamma, budget: row.budget };
}

function ascending(values: readonly number[]): number[] {
  return [...new Set(values)].sort((a, b) => a - b);
}

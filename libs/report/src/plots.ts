import * as Plot from "@observablehq/plot";
import { parseHTML } from "linkedom";
import { type IterationProfile, methodLabel, modeLabel, type ResultRow } from "./schema.ts";

/** One chart: a heading, what it shows, and its drawing as inline SVG (with its legend). */
export interface Chart {
  id: string;
  title: string;
  caption: string;
  svg: string;
}

/** Width of every chart in CSS pixels; the page scales it down on small screens. */
export const chartWidthPx = 1000;
const labelMarginPx = 150;

/** Colours that keep their contrast on light and on dark paper. */
const phaseColors = {
  draft: "#4c8dd6",
  verify: "#e08a3c",
  accept: "#4aa77a",
  select: "#b07cc6",
  "host and rest": "#8a9099",
} as const;

/** The four charts of a run; those that need a speculating method are left out without one. */
export function runCharts(rows: readonly ResultRow[], temperature: number): Chart[] {
  if (rows.length === 0) return [];
  const speculating = rows.filter((row) => row.method !== "baseline");
  const split = iterationChart(rows, temperature);
  if (speculating.length === 0) return [split];
  return [
    speedupChart(rows, temperature),
    split,
    positionChart(speculating, temperature),
    equationChart(speculating, temperature),
  ];
}

function speedupChart(rows: readonly ResultRow[], temperature: number): Chart {
  const bars = rows.map((row) => ({
    method: methodLabel(row),
    mode: modeLabel(row.mode, temperature),
    speedup: row.speedup,
    low: row.speedup - row.speedupDeviation,
    high: row.speedup + row.speedupDeviation,
    kind: row.method,
  }));
  const methods = distinct(bars.map((bar) => bar.method));
  return {
    id: "speedup",
    title: "Speed-up over the baseline of the same run",
    caption: "Mean over the repetitions, the line spans one standard deviation to either side.",
    svg: draw({
      height: facetHeight(methods.length),
      marginLeft: labelMarginPx,
      marginRight: 40,
      x: {
        label: "tokens/s over the baseline's",
        grid: true,
        domain: [0, 1.15 * max(bars, "high")],
      },
      y: { label: null, domain: methods },
      fx: { label: null, domain: distinct(bars.map((bar) => bar.mode)) },
      color: { domain: ["baseline", "self", "model"], range: ["#8a9099", "#4c8dd6", "#e08a3c"] },
      marks: [
        Plot.barX(bars, { x: "speedup", y: "method", fx: "mode", fill: "kind", rx: 2 }),
        Plot.ruleY(bars, {
          x1: "low",
          x2: "high",
          y: "method",
          fx: "mode",
          stroke: "currentColor",
        }),
        Plot.ruleX([1], { stroke: "currentColor", strokeDasharray: "4 3" }),
        Plot.text(bars, {
          x: "high",
          y: "method",
          fx: "mode",
          text: (bar: (typeof bars)[number]) => bar.speedup.toFixed(2),
          textAnchor: "start",
          dx: 5,
          fill: "currentColor",
        }),
      ],
    }),
  };
}

function iterationChart(rows: readonly ResultRow[], temperature: number): Chart {
  const mode = rows[0]?.mode ?? "greedy";
  const shown = rows.filter((row) => row.mode === mode);
  const parts = shown.flatMap((row) =>
    Object.entries({
      draft: row.gamma * row.msDraft,
      verify: row.msVerify,
      accept: row.msAccept,
      select: row.msSelect,
      "host and rest": row.msOther,
    }).map(([phase, ms]) => ({ method: iterationLabel(row), phase, ms })),
  );
  return {
    id: "iteration",
    title: "Where the time of an iteration goes",
    caption:
      `${modeLabel(mode, temperature)}. An iteration drafts gamma tokens for every sequence and ` +
      "verifies them in one pass; the baseline's is one step.",
    svg: draw({
      height: facetHeight(shown.length),
      marginLeft: labelMarginPx + 60,
      x: { label: "ms an iteration", grid: true },
      y: { label: null, domain: shown.map(iterationLabel) },
      color: {
        legend: true,
        domain: Object.keys(phaseColors),
        range: Object.values(phaseColors),
      },
      marks: [
        Plot.barX(parts, { x: "ms", y: "method", fill: "phase", order: Object.keys(phaseColors) }),
        Plot.ruleX([0], { stroke: "currentColor" }),
      ],
    }),
  };
}

/** The ops of an iteration by kind: a bar for what drafts, one for what verifies and decides. */
export function profileChart(profiles: readonly IterationProfile[], temperature: number): Chart {
  const bars = profiles.flatMap((profile) =>
    profile.parts.map(({ phase, kind, ms }) => {
      const drafting = phase === "draft" ? "draft" : "verify";
      return { bar: `${iterationLabel(profile)}: ${drafting}`, kind, ms };
    }),
  );
  const kinds = distinct(bars.map(({ kind }) => kind));
  const mode = profiles[0]?.mode ?? "greedy";
  const clock = Math.max(...profiles.map(({ msClock }) => 1000 * msClock));
  const replayed = profiles
    .map((one) => `${iterationLabel(one)} ${one.msReplayed.toFixed(2)} ms`)
    .join("; ");
  return {
    id: "profile",
    title: "Kernels of an iteration, timed one by one",
    caption:
      `${modeLabel(mode, temperature)}. Every op stands alone between two writes of the device's ` +
      `clock (${clock.toFixed(1)} us each, taken off): gaps are added, and nothing overlaps. A ` +
      `whole iteration as it is replayed in this run takes: ${replayed}.`,
    svg: draw({
      height: facetHeight(distinct(bars.map(({ bar }) => bar)).length),
      marginLeft: labelMarginPx + 110,
      x: { label: "ms", grid: true },
      y: { label: null, domain: distinct(bars.map(({ bar }) => bar)) },
      color: { legend: true, domain: kinds },
      marks: [
        Plot.barX(bars, Plot.groupY({ x: "sum" }, { x: "ms", y: "bar", fill: "kind" })),
        Plot.ruleX([0], { stroke: "currentColor" }),
      ],
    }),
  };
}

function positionChart(rows: readonly ResultRow[], temperature: number): Chart {
  const points = rows.flatMap((row) =>
    row.acceptanceByPosition.map((rate, index) => ({
      method: methodLabel(row),
      mode: modeLabel(row.mode, temperature),
      position: index + 1,
      rate,
    })),
  );
  const longest = Math.max(...points.map((point) => point.position), 1);
  return {
    id: "positions",
    title: "Acceptance by position in the draft",
    caption:
      "Chance that the i-th drafted token is accepted, those before it being accepted. A flat " +
      "line is what the equation assumes.",
    svg: draw({
      height: 320,
      marginLeft: 60,
      x: {
        label: "position in the draft",
        domain: [0.6, longest + 0.4],
        tickFormat: "d",
        ticks: range(longest).filter((i) => longest <= 8 || i % 2 === 0),
      },
      y: { label: "share accepted", labelOffset: 40, grid: true, domain: [0, 1] },
      fx: { label: null, domain: distinct(points.map((point) => point.mode)) },
      color: { legend: true, domain: distinct(points.map((point) => point.method)) },
      marks: [
        Plot.lineY(points, { x: "position", y: "rate", fx: "mode", stroke: "method" }),
        Plot.dot(points, { x: "position", y: "rate", fx: "mode", fill: "method", r: 4 }),
      ],
    }),
  };
}

function equationChart(rows: readonly ResultRow[], temperature: number): Chart {
  const points = rows.flatMap((row) =>
    row.predictedSpeedup === null
      ? []
      : [
          {
            method: methodLabel(row),
            mode: modeLabel(row.mode, temperature),
            predicted: row.predictedSpeedup,
            measured: row.speedup,
          },
        ],
  );
  const far = 1.1 * Math.max(1, ...points.flatMap((point) => [point.predicted, point.measured]));
  return {
    id: "equation",
    title: "Measured speed-up against the equation",
    caption:
      "T_T / T_spec = Omega(gamma, alpha) / (gamma T_D / T_T + T_V / T_T), with this run's T_T, " +
      "T_D, T_V and alpha. Below the line: time that the equation does not know (acceptance, " +
      "selection, host, sequences that end early).",
    svg: draw({
      height: 420,
      marginLeft: 60,
      x: { label: "speed-up by the equation", grid: true, domain: [0, far] },
      y: { label: "speed-up measured", grid: true, domain: [0, far] },
      color: { legend: true, domain: distinct(points.map((point) => point.method)) },
      fx: { label: null, domain: distinct(points.map((point) => point.mode)) },
      marks: [
        Plot.line(
          [
            [0, 0],
            [far, far],
          ],
          { stroke: "currentColor", strokeDasharray: "4 3" },
        ),
        Plot.dot(points, {
          x: "predicted",
          y: "measured",
          fx: "mode",
          stroke: "method",
          fill: "method",
          fillOpacity: 0.35,
          strokeWidth: 2,
          r: 6,
        }),
      ],
    }),
  };
}

/** Draws with the settings that all charts share, in a DOM (linkedom's) made for the call. */
export function draw(options: Plot.PlotOptions): string {
  const { document } = parseHTML("<!doctype html><html><body></body></html>");
  const figure: { outerHTML: string } = Plot.plot({
    document,
    width: chartWidthPx,
    // Rows of facets put their titles above the frame, and axis labels need room below it.
    marginTop: 44,
    marginBottom: 44,
    style: { fontSize: "13px", fontFamily: "inherit", background: "none", overflow: "visible" },
    ...options,
  });
  return figure.outerHTML;
}

function iterationLabel(row: Pick<ResultRow, "method" | "cache" | "budget" | "gamma">): string {
  return row.method === "baseline" ? methodLabel(row) : `${methodLabel(row)}, gamma ${row.gamma}`;
}

function facetHeight(rowCount: number): number {
  return 90 + 34 * rowCount;
}

function distinct<T>(values: readonly T[]): T[] {
  return [...new Set(values)];
}

function range(last: number): number[] {
  return Array.from({ length: last }, (_, index) => index + 1);
}

function max<K extends string>(items: readonly Record<K, number>[], key: K): number {
  return Math.max(...items.map((item) => item[key]));
}

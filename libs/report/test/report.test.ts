import { describe, expect, test } from "bun:test";
import { parseHTML } from "linkedom";
import {
  conclude,
  htmlReport,
  htmlSweep,
  LongspecReport,
  markdownReport,
  type Mode,
  type ResultRow,
  resultTables,
  RunManifest,
  runCharts,
  type SweepCell,
  SweepReport,
  terminalHeatMap,
} from "../src/index.ts";
import { baselineRow, makeManifest, makeReport, makeRow, makeRows } from "./rows.ts";

describe("schema", () => {
  test("accepts a report and a manifest, also through JSON", () => {
    const manifest = makeManifest();
    const again: unknown = JSON.parse(JSON.stringify(manifest));
    expect(RunManifest.parse(again)).toEqual(manifest);
    expect(LongspecReport.parse(makeReport())).toEqual(makeReport());
  });

  test("has the field names that others rely on", () => {
    const fields = Object.keys(LongspecReport.shape.results.element.shape);
    const promised = [
      "method",
      "cache",
      "gamma",
      "budget",
      "tokensPerSecond",
      "speedup",
      "acceptanceLength",
      "acceptanceRate",
      "acceptanceByPosition",
      "identical",
      "msTarget",
      "msDraft",
      "msVerify",
      "msOther",
      "limitShare",
    ];
    expect(fields).toContainValues(promised);
    expect(Object.keys(LongspecReport.shape)).toContainValues(["machine", "config", "results"]);
  });

  test("refuses figures that cannot be", () => {
    const broken = { ...makeReport(), results: [makeRow({ acceptanceRate: 1.2 })] };
    expect(LongspecReport.safeParse(broken).success).toBeFalse();
    expect(LongspecReport.safeParse({ ...makeReport(), version: 2 }).success).toBeFalse();
  });
});

describe("tables", () => {
  const options = { temperature: 0.6, color: false, phases: true };

  test("fit 130 columns and hold every method of every mode", () => {
    const text = resultTables(makeRows(), options);
    const widths = text.split("\n").map((line) => line.length);
    expect(Math.max(...widths)).toBeLessThanOrEqual(130);
    for (const mode of ["temperature 0.6, rejection", "temperature 0.6, coupled", "greedy"]) {
      expect(text).toContain(mode);
    }
    expect(text.match(/self, snapkv 256/g)).toHaveLength(6);
  });

  test("show identity, and what the rule does not promise", () => {
    const rows = [makeRow(), makeRow({ identical: false }), makeRow({ identical: null })];
    const text = resultTables(rows, { ...options, phases: false });
    expect(text).toContain(" yes");
    expect(text).toContain(" NO");
    expect(text).toContain(" in distr.");
    expect(text).not.toContain("T_V\n");
  });

  test("carry no colour codes unless asked for", () => {
    expect(resultTables(makeRows(), options)).not.toContain("\u001b");
    expect(resultTables(makeRows(), { ...options, color: true })).toContain("\u001b[1m");
  });

  test("of no rows is a heading only", () => {
    expect(resultTables([], options)).toContain("tokens/s");
  });
});

describe("charts", () => {
  test("a run has four, each with a drawing of every method", () => {
    const charts = runCharts(makeRows(), 0.6);
    const ids = charts.map((chart) => chart.id);
    expect(ids).toEqual(["speedup", "iteration", "positions", "equation"]);
    for (const chart of charts) {
      expect(chart.svg).toContain("<svg");
      expect(chart.svg).toContain("self, streaming 256");
      expect(chart.svg).not.toContain("NaN");
    }
  });

  test("axes are labelled with units", () => {
    const [speedup, iteration, positions, equation] = runCharts(makeRows(), 0.6);
    expect(speedup?.svg).toContain("tokens/s over the baseline");
    expect(iteration?.svg).toContain("ms an iteration");
    expect(positions?.svg).toContain("position in the draft");
    expect(equation?.svg).toContain("speed-up by the equation");
  });

  test("a run without speculation has the iteration only, one without rows none", () => {
    const ids = runCharts([makeRow(baselineRow)], 0.6).map((chart) => chart.id);
    expect(ids).toEqual(["iteration"]);
    expect(runCharts([], 0.6)).toEqual([]);
  });

  test("are drawn alike every time", () => {
    expect(runCharts(makeRows(), 0.6)).toEqual(runCharts(makeRows(), 0.6));
  });
});

describe("report.html", () => {
  test("is one page with all charts and tables that fetches nothing", () => {
    const html = htmlReport(makeManifest());
    const { document } = parseHTML(html);
    for (const id of ["speedup", "iteration", "positions", "equation"]) {
      expect(document.querySelector(`#${id} svg`)).not.toBeNull();
    }
    expect(document.querySelectorAll("table")).toHaveLength(6);
    expect(html).not.toMatch(/<script|<link|src=|url\(http|href="http/);
  });

  test("escapes what comes from outside", () => {
    const report = makeReport();
    report.config.target = "<script>alert(1)</script>";
    expect(htmlReport(makeManifest(report))).not.toContain("<script>");
  });

  test("of a partial run says so, also with nothing measured", () => {
    const report = { ...makeReport([]), partial: true };
    expect(htmlReport(makeManifest(report))).toContain("partial");
    expect(markdownReport(makeManifest(report))).toContain("partial");
  });
});

describe("report.md", () => {
  test("has a table of equal columns for each mode", () => {
    const text = markdownReport(makeManifest());
    const tables = text.split("\n\n").filter((block) => block.startsWith("|"));
    expect(tables).toHaveLength(6);
    for (const table of tables) {
      const widths = table.split("\n").map((line) => line.split("|").length);
      expect(new Set(widths).size).toBe(1);
    }
  });
});

describe("conclusion", () => {
  const findings = (results: ResultRow[], extra = {}) => ({
    results,
    mismatches: [],
    partial: false,
    temperature: 0.6,
    batch: 8,
    prefixLen: 8000,
    ...extra,
  });

  test("names the best method of the first mode and the identity", () => {
    const text = conclude(findings(makeRows()));
    expect(text).toContain("self, streaming 256 (gamma 4) decodes 2.46 times as fast");
    expect(text).toContain("Every token of the coupled and greedy runs is the baseline's.");
  });

  test("names the method of another mode where it is another one", () => {
    const rejection = makeRow({ mode: "rejection", speedup: 2.4 });
    const same = makeRow({ mode: "coupled", speedup: 2.2 });
    const other = makeRow({ mode: "greedy", method: "model", speedup: 3.1 });
    const text = conclude(findings([rejection, same, other]));
    expect(text).toMatch(/2\.20 times at [^(]*coupled and 3\.10 times at greedy \(model, /);
  });

  test("says when nothing pays", () => {
    const text = conclude(findings([makeRow({ ...baselineRow }), makeRow({ speedup: 0.8 })]));
    expect(text).toContain("no draft pays");
  });

  test("of a baseline run gives its share of the bandwidth", () => {
    expect(conclude(findings([makeRow(baselineRow)]))).toContain("533 tokens/s and uses 71 %");
  });

  test("puts a mismatch and an interruption into words", () => {
    const mismatch = {
      mode: "greedy" as Mode,
      id: "self+streaming g4 b256",
      repetition: 1,
      sequence: 3,
      position: 17,
      expectedToken: 5,
      actualToken: 6,
    };
    const text = conclude(findings([makeRow()], { mismatches: [mismatch], partial: true }));
    expect(text).toContain("WRONG: self+streaming g4 b256 left the baseline's text in mode greedy");
    expect(text).toContain("sequence 3, new token 17");
    expect(text).toContain("interrupted");
  });
});

describe("heat map", () => {
  const cell = (batch: number, prefixLen: number, row: ResultRow): SweepCell => ({
    key: `${batch} ${prefixLen} ${row.gamma}`,
    batch,
    prefixLen,
    row,
  });
  const cells = [
    cell(1, 1000, makeRow({ speedup: 0.8 })),
    cell(8, 1000, makeRow({ speedup: 1.2, gamma: 2 })),
    cell(8, 1000, makeRow({ speedup: 1.5, gamma: 6 })),
    cell(8, 8000, makeRow({ speedup: 2.5 })),
  ];

  test("shows the best gamma of each place and marks what is missing", () => {
    const text = terminalHeatMap(cells, false);
    expect(text).toContain("1.50 (g6)");
    expect(text).not.toContain("1.20");
    expect(text.split("\n").find((line) => line.trimStart().startsWith("1 "))).toMatch(
      /0\.80 .*\.$/,
    );
  });

  test("colours gains and losses", () => {
    expect(terminalHeatMap(cells, true)).toContain("\u001b[31m");
    expect(terminalHeatMap(cells, true)).toContain("\u001b[32m");
  });

  test("stands in the sweep's page with every cell", () => {
    const { machine, config } = makeReport();
    const report = SweepReport.parse({
      version: 1,
      machine,
      config: { ...config, command: "sweep" },
      cells,
      planned: 6,
      partial: true,
      conclusion: "It depends.",
      resultsFolder: "results/x",
    } satisfies SweepReport);
    const { document } = parseHTML(htmlSweep(report));
    expect(document.querySelector("#heatmap svg")).not.toBeNull();
    expect(document.querySelectorAll("tbody tr")).toHaveLength(4);
  });
});

// The README's GPU tables, from results files: what was measured beside what was aimed at and what others reach.

import type { CellResults } from "./cells.ts";
import type { Cell, CellResult, CellTimes } from "./cells_measure.ts";
import type { GpuKernelResults, GpuRow } from "./kernels.ts";

/** What bench/gpu/loading.ts writes. */
interface LoadingResults {
  readonly samples: readonly { readonly gigabytesPerSecond: number; readonly hostBytes: number }[];
}

export interface GpuResults {
  readonly kernels: GpuKernelResults | undefined;
  readonly cells: CellResults | undefined;
  readonly loading?: LoadingResults | undefined;
  readonly peer: { readonly cells: readonly (Cell & CellTimes)[] };
}

/** The fastest stream that any library's kernel reached on this GPU: what all aims are ratios to. */
const referenceGigabytesPerSecond = 4480;
/** Batch x context tokens from which on a cell counts as large. */
const largeCellTokens = 400_000;
/** Tokens a sequence in a verify pass of gamma 7. */
const verifyRows = 8;

/** Markdown with columns padded as `bun fmt` leaves them. */
export function markdownTable(head: readonly string[], rows: readonly (readonly string[])[]) {
  const widths = head.map((_, i) =>
    Math.max(3, ...[head, ...rows].map((cells) => (cells[i] ?? "").length)),
  );
  const line = (cells: readonly string[]) =>
    `| ${widths.map((width, i) => (cells[i] ?? "").padEnd(width)).join(" | ")} |`;
  const rule = `| ${widths.map((width) => "-".repeat(width)).join(" | ")} |`;
  return [line(head), rule, ...rows.map(line)].join("\n");
}

export function gpuSection(results: GpuResults): string {
  const { kernels, cells } = results;
  const parts: string[] = [];
  const about = (cells ?? kernels)?.provenance;
  if (about !== undefined) {
    const { gpu, device, commit, when } = about;
    const driver = gpu === null ? "" : `, driver ${gpu.driver_version}, ${gpu["clocks.sm"]}`;
    parts.push(`${device.name}${driver}, ${when.slice(0, 10)}, commit ${commit?.slice(0, 7)}.`);
  }
  if (cells !== undefined) {
    parts.push(
      "Milliseconds, here / MagicDec on an H200; Llama-3.1-8B shapes, T_T in the generation loop, an iteration with gamma 7 and a " +
        "draft budget of 513; the speed-up is the equation's, were 83 % of drafts accepted.",
      cellTable(cells, results.peer.cells),
    );
  }
  const aims = aimRows(results);
  if (aims.length > 0) parts.push(markdownTable(["what", "measured", "aim", "elsewhere"], aims));
  return parts.join("\n\n");
}

const ms = (value: number) => value.toFixed(value < 10 ? 2 : 1);

function measuredCells(cells: CellResults | undefined): CellResult[] {
  return (cells?.cells ?? []).flatMap((cell) => ("failed" in cell ? [] : [cell]));
}

function cellTable(results: CellResults, peers: readonly (Cell & CellTimes)[]): string {
  const rows = measuredCells(results).map((cell) => {
    const peer = peers.find(({ batch, tokens }) => batch === cell.batch && tokens === cell.tokens);
    const beside = (key: keyof CellTimes) =>
      peer === undefined ? ms(cell[key]) : `${ms(cell[key])} / ${ms(peer[key])}`;
    return [
      `${cell.batch} x ${cell.tokens}`,
      beside("msPlainLoop"),
      beside("msVerify4"),
      beside("msVerify8"),
      beside("msDraft513"),
      beside("msDraft2049"),
      beside("msIteration"),
      peer === undefined ? "" : (cell.msIteration / peer.msIteration).toFixed(2),
      cell.speedupAt83.toFixed(2),
    ];
  });
  const head = ["B x S", "T_T", "T_V4", "T_V8", "T_D 513", "T_D 2049", "iteration", "ratio"];
  return markdownTable([...head, "speed-up at .83"], rows);
}

/** Lines of the table of aims; a line whose figures are not there is left out. */
function aimRows(results: GpuResults): string[][] {
  return [...kernelAims(results.kernels), ...cellAims(results), ...loadingAims(results.loading)];
}

function loadingAims(loading: LoadingResults | undefined): string[][] {
  const samples = loading?.samples ?? [];
  if (samples.length === 0) return [];
  const rates = range(samples.map(({ gigabytesPerSecond }) => gigabytesPerSecond));
  const host = range(
    samples.map(({ hostBytes }) => hostBytes / 2 ** 20),
    0,
  );
  return [
    [
      "loading 16 GB from the page cache, GB/s; host memory, MiB",
      `${rates}; ${host}`,
      "4; 1024",
      "",
    ],
  ];
}

interface KernelAim {
  readonly what: string;
  readonly op: string;
  readonly shapes: readonly string[];
  readonly unit: "TB/s" | "TFLOP/s" | "us";
  readonly aim: string;
  /** What is known beside the peers of the same session. */
  readonly known?: string;
}

const largeCells = ["32x16384", "16x32768", "4x131072"];
const singleCells = ["1x16384", "1x131072"];

const kernelLines: readonly KernelAim[] = [
  ...[1, 4, 8].map((q) => ({
    what: `attention, q = ${q}: ${largeCells.join(", ")}`,
    op: "attention",
    shapes: largeCells.map((cell) => `q=${q} ${cell} 8b`),
    unit: "TB/s" as const,
    aim: "4.45",
    known: `${q === 8 ? "3.5 to 3.9" : "4.45 to 4.50"} (FlashInfer)`,
  })),
  ...[1, 4, 8].map((q) => ({
    what: `attention, q = ${q}: ${singleCells.join(", ")}`,
    op: "attention",
    shapes: singleCells.map((cell) => `q=${q} ${cell} 8b`),
    unit: "TB/s" as const,
    aim: "3.0, 4.3",
  })),
  {
    what: "draft attention, B = 32, 513 and 2049 tokens",
    op: "attention",
    shapes: ["draft view 513 32x16384 8b", "draft view 2049 32x16384 8b"],
    unit: "us",
    aim: "19, 65",
    known: "28, 71.5 (FlashInfer)",
  },
  layerLine([1, 8, 16], "108"),
  layerLine([32, 64], "112, 120"),
  layerLine([128, 256, 512], "as cuBLASLt"),
  {
    what: "prefill attention, causal: 4K, 16K, 64K",
    op: "attention",
    shapes: [4096, 16384, 65536].map((tokens) => `prefill 1x${tokens} 8b`),
    unit: "TFLOP/s",
    aim: "550 at 16K",
  },
];

function layerLine(rows: readonly number[], aim: string): KernelAim {
  return {
    what: `linear, the four of a layer, M = ${rows.join(", ")}`,
    op: "linear",
    shapes: rows.map((m) => `layer m=${m} 8b`),
    unit: "us",
    aim,
  };
}

function kernelAims(kernels: GpuKernelResults | undefined): string[][] {
  const measured = (kernels?.results ?? []).flatMap((row) => ("skipped" in row ? [] : [row]));
  return kernelLines.flatMap(({ what, op, shapes, unit, aim, known }) => {
    const rows = shapes.flatMap((shape) =>
      measured.filter((row) => row.op === op && row.shape === shape),
    );
    if (rows.length < shapes.length) return [];
    const values = rows.map((row) => inUnit(unit, row, row.us)).join(", ");
    const elsewhere = [known, peerText(unit, rows)].filter((text) => text !== undefined);
    return [[`${what}, ${unit}`, values, aim, elsewhere.join("; ")]];
  });
}

function inUnit(unit: KernelAim["unit"], { bytes, flops }: GpuRow, us: number): string {
  if (unit === "TB/s") return (bytes / us / 1e6).toFixed(2);
  return unit === "us" ? us.toFixed(us < 100 ? 1 : 0) : (flops / us / 1e6).toFixed(0);
}

/** "120, 121 (cublas); 126 (cublaslt)": the peers of these rows, by library. */
function peerText(unit: KernelAim["unit"], rows: readonly GpuRow[]): string | undefined {
  const parts: { by: string; values: string[] }[] = [];
  for (const row of rows) {
    if (row.peer === undefined) return undefined;
    const { by, us } = row.peer;
    const value = inUnit(unit, row, us);
    const last = parts.at(-1);
    if (last?.by === by) last.values.push(value);
    else parts.push({ by, values: [value] });
  }
  return parts.map(({ by, values }) => `${values.join(", ")} (${by})`).join("; ");
}

/** "1.03 to 1.06" of several ratios. */
function range(values: readonly number[], digits = 2): string {
  const [least, most] = [Math.min(...values).toFixed(digits), Math.max(...values).toFixed(digits)];
  return least === most ? least : `${least} to ${most}`;
}

function cellAims({ cells: results, peer }: GpuResults): string[][] {
  const cells = measuredCells(results);
  const large = cells.filter(({ batch, tokens }) => batch * tokens >= largeCellTokens);
  const small = cells.filter((cell) => !large.includes(cell));
  const ofBytes = (value: number, bytes: number) =>
    value / (bytes / referenceGigabytesPerSecond / 1e6);
  const line = (
    what: string,
    among: readonly CellResult[],
    value: (cell: CellResult) => number | undefined,
    aim: string,
    elsewhere: string,
  ): string[][] => {
    const values = among.map(value).filter((x) => x !== undefined);
    return values.length === 0 ? [] : [[what, range(values), aim, elsewhere]];
  };
  const plain = (cell: CellResult) => ofBytes(cell.msPlain, cell.bytesPlain);
  const ratio = (cell: CellResult) => {
    const other = peer.cells.find(
      ({ batch, tokens }) => batch === cell.batch && tokens === cell.tokens,
    );
    return other && cell.msIteration / other.msIteration;
  };
  const draft = (cell: CellResult) => [
    ofBytes(cell.msDraft513, cell.bytesDraft513),
    ofBytes(cell.msDraft2049, cell.bytesDraft2049),
  ];
  const prefill = results?.prefill;
  const rows = [
    ...line("T_T / bytes at 4.48 TB/s, large cells", large, plain, "1.06", "1.12 to 1.15"),
    ...line("the same, small cells", small, plain, "1.12", "1.33 to 1.65"),
    ...line(
      "T_V8 / T_T, cells with up to 128 rows",
      cells.filter(({ batch }) => batch * verifyRows <= 128),
      (cell) => cell.msVerify8 / cell.msPlain,
      "1.05",
      "1.06 to 1.10",
    ),
  ];
  if (cells.length > 0) {
    rows.push(
      ["T_D / bytes at 4.48 TB/s", range(cells.flatMap(draft)), "1.18", "1.45 to 1.7"],
      [
        "an iteration beside its phases, us",
        range(
          cells.map(({ msGap }) => 1e3 * msGap),
          0,
        ),
        "50",
        "1000 to 2000",
      ],
    );
  }
  rows.push(
    ...line("one iteration / MagicDec's, large cells", large, ratio, "0.79", "1"),
    ...line("the same, small cells", small, ratio, "0.70", "1"),
  );
  if (prefill !== undefined && !("failed" in prefill)) {
    const { batch, tokens, teraflopsPerSecond } = prefill;
    rows.push([
      `prefill of ${batch} x ${tokens}, TFLOP/s`,
      teraflopsPerSecond.toFixed(0),
      "500",
      "",
    ]);
  }
  return rows;
}

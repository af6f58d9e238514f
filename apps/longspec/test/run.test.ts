import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import {
  appendFileSync,
  existsSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
} from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { LongspecReport, RunManifest, SweepReport } from "@magicdec/report";
import { parseArgv } from "../src/argv.ts";
import { readCells } from "../src/cells.ts";
import { UsageError } from "../src/errors.ts";
import { type Options, resolveOptions } from "../src/options.ts";
import { runBenchmark } from "../src/run.ts";
import type { Setup } from "../src/setup.ts";
import { runSweep } from "../src/sweep.ts";
import type { Terminal } from "../src/terminal.ts";
import { FakeEngine, type FakeOptions } from "./fake_engine.ts";

let root = "";
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "longspec-"));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

/** A terminal that remembers what was written where. */
class Recorder implements Terminal {
  results: string[] = [];
  texts = "";
  errors: string[] = [];
  progressText = "";
  readonly color = false;
  readonly progress = {
    isTerminal: false,
    write: (text: string) => {
      this.progressText += text;
    },
  };
  result(json: string): void {
    this.results.push(json);
  }
  text(text: string): void {
    this.texts += text;
  }
  error(message: string): void {
    this.errors.push(message);
  }
}

function options(line: string): Options {
  const { command, values } = parseArgv(`${line} --results ${root}`.split(" "));
  return resolveOptions(command, values);
}

function fakeSetup(engine: FakeEngine): Setup {
  return {
    engine,
    tokenizer: { decode: (ids) => [...ids].join(" "), eosIds: [0] },
    prompts: (lengths) => lengths.map((length) => new Int32Array(length).fill(1)),
    device: "cpu v3",
    threads: 2,
    pageSize: 512,
    [Symbol.dispose]: () => {},
  };
}

async function bench(line: string, fake: FakeOptions = {}, signal = new AbortController().signal) {
  const terminal = new Recorder();
  const engine = new FakeEngine(fake);
  const code = await runBenchmark(options(line), terminal, signal, () =>
    Promise.resolve(fakeSetup(engine)),
  );
  const [folder = ""] = readdirSync(root);
  return { code, terminal, engine, folder: join(root, folder) };
}

const small = "--B 2 --prefix-len 30 --gen-len 20 --draft-budget 64 --sinks 4 --window-size 8";

describe("a run", () => {
  test("writes a manifest, a report and a page, and prints tables and a conclusion", async () => {
    const { code, terminal, folder } = await bench(`longspec ${small}`);
    expect(code).toBe(0);
    expect(readdirSync(folder).sort()).toEqual(["report.html", "report.md", "run.json"]);
    const manifest = RunManifest.parse(JSON.parse(readFileSync(join(folder, "run.json"), "utf8")));
    expect(manifest.report.results).toHaveLength(18);
    expect(manifest.samples).toHaveLength(54);
    expect(manifest.seeds).toEqual([123, 124, 125]);
    expect(terminal.texts).toContain("self, streaming 64");
    expect(terminal.texts).toContain(
      "Every token of the coupled and greedy runs is the baseline's.",
    );
    expect(terminal.texts).toContain(folder);
    expect(terminal.results).toEqual([]);
  });

  test("--json prints one object of the exported schema and nothing else", async () => {
    const { terminal } = await bench(`selfspec ${small} --json --repetitions 1`);
    expect(terminal.texts).toBe("");
    expect(terminal.results).toHaveLength(1);
    const report = LongspecReport.parse(JSON.parse(terminal.results[0] ?? ""));
    expect(report.config).toMatchObject({ command: "selfspec", batch: 2, genLen: 20 });
    expect(new Set(report.results.map((row) => row.method))).toEqual(new Set(["baseline", "self"]));
  });

  test("baseline measures the baseline only; --no-benchmark leaves one table", async () => {
    const { terminal, engine } = await bench(`baseline --B 1 --prefix-len 30 --no-benchmark`);
    expect(new Set(engine.calls.map((call) => call.speculation.method))).toEqual(new Set(["off"]));
    expect(terminal.texts).not.toContain("T_V\n");
    expect(terminal.texts).toContain("Decoding without speculation");
  });

  test("random weights: times, and what they would give at assumed acceptance rates", async () => {
    const line = `selfspec --random-weights llama-3.1-8b --skip-prefill --profile --gamma 3 ${small}`;
    const { code, terminal, folder } = await bench(line);
    expect(code).toBe(0);
    const files = ["profile.json", "report.html", "report.md", "run.json"];
    expect(readdirSync(folder).sort()).toEqual(files);
    const { report } = RunManifest.parse(
      JSON.parse(readFileSync(join(folder, "run.json"), "utf8")),
    );
    expect(report.config).toMatchObject({ randomWeights: true, prefillSkipped: true });
    // T_T 10, T_D 1, T_V 10 and nothing else: (1 - .9^4) / (1 - .9) * 10 / 13.
    const [first] = report.assumed ?? [];
    expect(first).toMatchObject({ gamma: 3, msIteration: 13 });
    const at = first?.byAlpha.find(({ alpha }) => alpha === 0.9);
    expect(at?.speedup).toBeCloseTo(2.645, 3);
    expect(at?.bestGamma).toBeGreaterThan(3);
    expect(report.profile?.map(({ parts }) => parts.length)).toEqual([6, 6, 6]);
    expect(terminal.texts).toContain("alpha 0.83");
    expect(terminal.texts).toContain("The weights are random: times mean something");
    expect(terminal.progressText).toContain("no prefill: the caches hold seeded noise");
    const page = readFileSync(join(folder, "report.html"), "utf8");
    expect(page).toContain('id="profile"');
    expect(page).toContain("Speed-up by assumed acceptance");
    expect(readFileSync(join(folder, "report.md"), "utf8")).toContain("skipped: the caches held");
  });

  test("--printoutput prints every sequence's text", async () => {
    const { terminal } = await bench(
      `baseline ${"--B 2 --prefix-len 30 --gen-len 3"} --printoutput`,
    );
    expect(terminal.texts).toMatch(/--- sequence 0\n\d+ \d+ \d+\n--- sequence 1\n\d+ \d+ \d+\n/);
  });

  test("a wrong token ends in exit code 1 with its place, and the results say so", async () => {
    const { code, terminal, folder } = await bench(`longspec ${small} --repetitions 1`, {
      corrupt: ({ speculation }, sequence, position, token) =>
        speculation.cache === "snapkv" && sequence === 1 && position === 3 ? token + 1 : token,
    });
    expect(code).toBe(1);
    expect(terminal.errors[0]).toMatch(
      /self\+snapkv g5 b64, coupled, .*sequence 1, new token 3.*\(logit .*\(logit /,
    );
    expect(readFileSync(join(folder, "report.md"), "utf8")).toContain("WRONG");
  });

  test("an interruption writes what there is, marked as partial, and exits 130", async () => {
    const controller = new AbortController();
    let decodes = 0;
    const onDecode = () => {
      if (++decodes === 9) controller.abort();
    };
    const { code, folder } = await bench(`longspec ${small}`, { onDecode }, controller.signal);
    expect(code).toBe(130);
    const manifest = RunManifest.parse(JSON.parse(readFileSync(join(folder, "run.json"), "utf8")));
    expect(manifest.report.partial).toBeTrue();
    expect(manifest.samples).toHaveLength(2);
    expect(readFileSync(join(folder, "report.html"), "utf8")).toContain("partial");
  });

  test("that fails before it starts leaves no folder", async () => {
    const terminal = new Recorder();
    const failing = () => Promise.reject(new Error("no such model"));
    const { signal } = new AbortController();
    const run = runBenchmark(options("longspec"), terminal, signal, failing);
    expect(run).rejects.toThrow("no such model");
    await run.catch(() => {});
    expect(readdirSync(root)).toEqual([]);
  });
});

describe("a sweep", () => {
  const line =
    "sweep --B 1,2 --prefix-len 30,60 --gamma 2,4 --draft-budget 24 --method self --gen-len 12";

  async function sweep(extra = "", fake: FakeOptions = {}, signal = new AbortController().signal) {
    const terminal = new Recorder();
    const engine = new FakeEngine(fake);
    const prepare = () => Promise.resolve(fakeSetup(engine));
    const settings = `${line} --window-size 8 ${extra}`.trim();
    const code = await runSweep(options(settings), terminal, signal, prepare);
    return { code, terminal, engine, folder: join(root, readdirSync(root)[0] ?? "") };
  }

  test("measures every cell and draws the heat map", async () => {
    const { code, terminal, folder } = await sweep();
    expect(code).toBe(0);
    expect(readdirSync(folder).sort()).toEqual(["cells.jsonl", "report.html", "sweep.json"]);
    const report = SweepReport.parse(JSON.parse(readFileSync(join(folder, "sweep.json"), "utf8")));
    // 2 batches x 2 prefixes x 2 caches x 2 gammas
    expect(report.cells).toHaveLength(16);
    expect(report).toMatchObject({ planned: 16, partial: false });
    expect(new Set(report.cells.map((cell) => cell.key)).size).toBe(16);
    expect(terminal.texts).toContain("self, streaming, coupled");
    expect(readFileSync(join(folder, "report.html"), "utf8")).toContain('id="heatmap"');
  });

  test("goes on after an interruption with what is missing only", async () => {
    const controller = new AbortController();
    let decodes = 0;
    // A group is 5 brief and 5 whole decodes: stop in the second one's second method.
    const onDecode = () => {
      if (++decodes === 18) controller.abort();
    };
    const first = await sweep("", { onDecode }, controller.signal);
    expect(first.code).toBe(130);
    expect(first.terminal.progressText).toContain(`--resume ${first.folder}`);
    const before = readCells(first.folder);
    expect(before).toHaveLength(5);
    const second = await sweep(`--resume ${first.folder}`);
    expect(second.code).toBe(0);
    expect(readCells(first.folder).slice(0, 5)).toEqual(before);
    expect(new Set(readCells(first.folder).map((cell) => cell.key)).size).toBe(16);
    expect(second.terminal.progressText).toContain("measured already");
    // 3 cells with their baseline, then two whole groups, each decode brief and whole.
    expect(second.engine.calls).toHaveLength(2 * (4 + 5 + 5));
    const third = await sweep(`--resume ${first.folder}`);
    expect(third.engine.calls).toHaveLength(0);
  });

  test("other settings are other cells", async () => {
    const { folder } = await sweep();
    const { engine } = await sweep(`--resume ${folder} --seed 7`);
    expect(engine.calls.length).toBeGreaterThan(0);
    expect(readCells(folder)).toHaveLength(32);
  });

  test("a cut last line is dropped, a damaged line is refused", async () => {
    const { folder } = await sweep();
    const path = join(folder, "cells.jsonl");
    appendFileSync(path, '{"key":"cut of');
    expect(readCells(folder)).toHaveLength(16);
    expect(readCells(folder)).toHaveLength(16);
    appendFileSync(path, "nonsense\n");
    expect(() => readCells(folder)).toThrow(
      /--resume: expected a finished cell in line 17 .*remove that line/,
    );
  });

  test("--resume of a folder that is no sweep is refused", () => {
    expect(() => readCells(root)).toThrow(UsageError);
    expect(() => readCells(join(root, "none"))).toThrow(/without cells.jsonl/);
    expect(existsSync(join(root, "none"))).toBeFalse();
  });
});

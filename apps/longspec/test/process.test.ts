import { standardAlpha } from "../src/methods.ts";
import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { embeddedTarget } from "@magicdec/embedded";
import { LongspecReport, RunManifest, SweepReport } from "@magicdec/report";

const main = join(import.meta.dir, "../src/main.ts");
const root = mkdtempSync(join(tmpdir(), "longspec-process-"));
afterAll(() => rmSync(root, { recursive: true, force: true }));

/** A small run that has every part of a large one. */
const small = "--B 2 --prefix-len 300 --gen-len 24 --draft-budget 64 --repetitions 1";
const generous = 120_000;

let runs = 0;

function start(line: string, wrap: (command: string[]) => string[] = (command) => command) {
  const results = join(root, `run-${runs++}`);
  const words = line.split(" ").filter((word) => word !== "");
  const takesResults =
    words[0] !== "plan" && !words.includes("--results") && !words.includes("--help");
  const command = ["bun", main, ...words, ...(takesResults ? ["--results", results] : [])];
  const child = Bun.spawn(wrap(command), { stdout: "pipe", stderr: "pipe" });
  return { child, results };
}

async function run(line: string, wrap?: (command: string[]) => string[]) {
  const { child, results } = start(line, wrap);
  const [stdout, stderr, code] = await Promise.all([
    child.stdout.text(),
    child.stderr.text(),
    child.exited,
  ]);
  return { stdout, stderr, code, results };
}

/** The run's folder, and what it left in there. */
function files(results: string): string[] {
  return existsSync(results) ? readdirSync(results, { recursive: true }).map(String).sort() : [];
}

describe("help", () => {
  test("exits 0 and shows flags, units and defaults on stdout", async () => {
    const { stdout, stderr, code } = await run("--help");
    expect({ code, stderr }).toEqual({ code: 0, stderr: "" });
    expect(stdout).toContain("--prefix-len <TOKENS>");
    expect(stdout).toContain("[0.6]");
    expect(stdout).toContain("sweep");
  });

  test("of a subcommand", async () => {
    const { stdout, code } = await run("sweep --help");
    expect(code).toBe(0);
    expect(stdout).toContain("--resume <FOLDER>");
  });
});

describe("bad input", () => {
  const short = join(root, "short.txt");
  writeFileSync(short, "Call me Ishmael. ".repeat(20));
  const empty = join(root, "empty.txt");
  writeFileSync(empty, "");
  const otherModel = join(root, "damaged");
  Bun.spawnSync(["cp", "-r", embeddedTarget, otherModel]);
  writeFileSync(join(otherModel, "model.safetensors"), "not a safetensors file");

  const cases: [name: string, line: string, code: number, message: RegExp][] = [
    ["a misspelt flag", "--gama 3", 2, /did you mean --gamma\?/],
    ["several ranks", "--rank_group 0 1 2 3", 2, /several ranks are not supported yet/],
    ["a model that is not there", `--model ${root}/none`, 1, /none.*expected .*got .*; /],
    ["a damaged checkpoint", `--model ${otherModel}`, 1, /model\.safetensors.*expected/],
    [
      "a data set that is not there",
      `--dataset ${root}/none.txt`,
      1,
      /data set .*none\.txt: expected/,
    ],
    ["an empty data set", `--dataset ${empty}`, 1, /empty\.txt: expected text/],
    ["a text shorter than the prefix", `--dataset ${short}`, 1, /at least \d+ tokens .*, got \d+;/],
    ["a GPU that is not there", "--device cuda:77", 1, /^error: md_context_create: /],
    ["a prefix beyond the context", "--prefix-len 20000", 1, /context of 16384, got 20096/],
    [
      "memory that cannot suffice",
      "--B 4096 --prefix-len 16000",
      1,
      /^error: memory: expected at most/,
    ],
    ["a folder below a file", `--results ${short}/results`, 1, /a part of that path is a file/],
    ["a sweep to resume that is none", `sweep --resume ${root}`, 2, /without cells\.jsonl/],
  ];

  test.each(cases)(
    "%s",
    async (_, line, expected, message) => {
      const { stdout, stderr, code, results } = await run(line);
      const errors = stderr.split("\n").filter((text) => text.startsWith("error: "));
      expect(errors).toHaveLength(1);
      expect(errors[0]).toMatch(message);
      expect({ code, stdout }).toEqual({ code: expected, stdout: "" });
      expect(files(results).filter((name) => name.includes("."))).toEqual([]);
    },
    generous,
  );

  test.if(process.platform === "linux")(
    "a disk without room is found out before the run",
    async () => {
      // A limit on file sizes (in blocks) stands for a full disk: writing 1 MB fails in both.
      const limited = (command: string[]) => [
        "sh",
        "-c",
        'trap "" XFSZ; ulimit -f 64; exec "$0" "$@"',
        ...command,
      ];
      const { stderr, code, results } = await run(`longspec ${small}`, limited);
      expect(code).toBe(1);
      expect(stderr).toMatch(
        /^error: results folder: expected to write 1 MB in .*; free some space/,
      );
      expect(files(results)).toEqual([]);
    },
  );
});

describe("a small run with the embedded pair", () => {
  test(
    "runs every method in every mode and returns the baseline's tokens",
    async () => {
      const { stdout, stderr, code, results } = await run(`longspec ${small} --json`);
      expect({ code, errors: stderr.match(/^error.*/gm) }).toEqual({ code: 0, errors: null });
      expect(stdout.trim().split("\n")).toHaveLength(1);
      const report = LongspecReport.parse(JSON.parse(stdout));
      expect(report.results).toHaveLength(18);
      for (const row of report.results) {
        expect(row.tokensPerSecond).toBeGreaterThan(0);
        if (row.method === "baseline") continue;
        expect(row.identical).toBe(row.mode === "rejection" ? null : true);
        expect(row.acceptanceLength).toBeWithin(1, row.gamma + 1.001);
        expect(row.acceptanceByPosition).toHaveLength(row.gamma);
      }
      const [folder = ""] = files(results);
      const saved: unknown = JSON.parse(readFileSync(join(results, folder, "run.json"), "utf8"));
      expect(RunManifest.parse(saved).report).toEqual(report);
    },
    generous,
  );

  test(
    "a ragged batch, other sinks, no graphs, one thread of the CPU",
    async () => {
      const flags =
        "--device cpu --prefix-len 40,300,129 --gen-len 20 --budget 48 --sinks 0 --no-compile --threads 1";
      const { stdout, code } = await run(`longspec ${flags} --repetitions 1 --mode coupled --json`);
      expect(code).toBe(0);
      const report = LongspecReport.parse(JSON.parse(stdout));
      expect(report.config).toMatchObject({ batch: 3, graphs: false, threads: 1 });
      for (const row of report.results.slice(1)) expect(row.identical).toBeTrue();
    },
    generous,
  );

  test(
    "prints a table, a conclusion and the text for people",
    async () => {
      const { stdout, code } = await run(`selfspec ${small} --mode greedy --printoutput`);
      expect(code).toBe(0);
      expect(stdout).toContain("self, streaming 64");
      expect(stdout).toContain("Every token of the greedy runs is the baseline's.");
      expect(stdout).toContain("--- sequence 1");
    },
    generous,
  );

  test(
    "random weights of a config.json decode noise losslessly, with the ops timed",
    async () => {
      const config = join(root, "config.json");
      const sizes = { hidden_size: 128, intermediate_size: 256, num_hidden_layers: 2 };
      const heads = { num_attention_heads: 2, num_key_value_heads: 1, vocab_size: 500 };
      const rest = { max_position_embeddings: 4096, rms_norm_eps: 1e-5 };
      writeFileSync(config, JSON.stringify({ model_type: "llama", ...sizes, ...heads, ...rest }));
      const flags = `--random-weights ${config} ${config} --skip-prefill --profile --json`;
      const { stdout, code } = await run(`longspec ${small} ${flags}`);
      expect(code).toBe(0);
      const report = LongspecReport.parse(JSON.parse(stdout));
      expect(report.config.dataset).toBe("random");
      for (const row of report.results) {
        if (row.method === "baseline") continue;
        expect(row.identical).toBe(row.mode === "rejection" ? null : true);
      }
      expect(report.assumed).toHaveLength(15);
      const ops = report.profile?.flatMap(({ parts }) => parts) ?? [];
      expect(new Set(ops.map(({ kind }) => kind))).toContain("attention");
    },
    generous,
  );

  test(
    "gamma auto takes one that the equation finds",
    async () => {
      const { stdout, code } = await run(`selfspec ${small} --gamma auto --mode coupled --json`);
      expect(code).toBe(0);
      const report = LongspecReport.parse(JSON.parse(stdout));
      for (const row of report.results) expect(row.gamma).toBeWithin(0, 17);
    },
    generous,
  );

  test(
    "a sweep measures its grid and goes on from where it was",
    async () => {
      const grid =
        "sweep --B 1,2 --prefix-len 200 --gamma 2 --budget 64 --method self --gen-len 12";
      const first = await run(`${grid} --json`);
      expect(first.code).toBe(0);
      const report = SweepReport.parse(JSON.parse(first.stdout));
      expect(report.cells).toHaveLength(4);
      const second = await run(`${grid} --json --resume ${report.resultsFolder}`);
      expect(second.code).toBe(0);
      expect(SweepReport.parse(JSON.parse(second.stdout)).cells).toEqual(report.cells);
    },
    generous,
  );

  test(
    "plan prints memory and what to expect",
    async () => {
      const { stdout, code } = await run("plan --B 2 --prefix-len 1000 --gamma auto");
      expect(code).toBe(0);
      expect(stdout).toContain("all together");
      const alpha = standardAlpha.self.toFixed(2);
      const line = new RegExp(`self, streaming 256, gamma \\d+ +alpha ${alpha} +T_T .* x`);
      expect(stdout).toMatch(line);
    },
    generous,
  );

  test(
    "Ctrl-C writes partial results and exits 130",
    async () => {
      const { child, results } = start(
        "selfspec --B 2 --prefix-len 300 --gen-len 200 --repetitions 50",
      );
      let seen = "";
      let interrupted = false;
      for await (const chunk of child.stderr) {
        seen += new TextDecoder().decode(chunk);
        if (interrupted || !seen.includes("repetition 2 of 50")) continue;
        child.kill("SIGINT");
        interrupted = true;
      }
      expect(await child.exited).toBe(130);
      const manifest = files(results).find((name) => name.endsWith("run.json"));
      const saved: unknown = JSON.parse(readFileSync(join(results, manifest ?? ""), "utf8"));
      const { report, samples } = RunManifest.parse(saved);
      expect(report.partial).toBeTrue();
      expect(samples.length).toBeGreaterThanOrEqual(3);
      expect(files(results).filter((name) => name.includes("partial"))).toEqual([]);
    },
    generous,
  );
});

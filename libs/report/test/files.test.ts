import { afterEach, beforeEach, describe, expect, test } from "bun:test";
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import {
  commandLine,
  createResultsFolder,
  gitState,
  hostFacts,
  removeIfEmpty,
  ResultsError,
  writeAtomically,
} from "../src/index.ts";

let root = "";
beforeEach(() => {
  root = mkdtempSync(join(tmpdir(), "report-"));
});
afterEach(() => rmSync(root, { recursive: true, force: true }));

describe("results folder", () => {
  const noon = new Date("2026-01-02T12:34:56.789Z");

  test("is named by the time, made with its parents, and left empty by the probe", () => {
    const folder = createResultsFolder(join(root, "a", "b"), noon);
    expect(folder).toBe(join(root, "a", "b", "2026-01-02T12-34-56"));
    expect(readdirSync(folder)).toEqual([]);
  });

  test("a second run in the same second gets its own", () => {
    createResultsFolder(root, noon);
    expect(createResultsFolder(root, noon)).toBe(join(root, "2026-01-02T12-34-56-2"));
  });

  test("below a file it is refused with what to do", () => {
    writeFileSync(join(root, "file"), "");
    const make = () => createResultsFolder(join(root, "file", "results"));
    expect(make).toThrow(ResultsError);
    expect(make).toThrow(/expected to write below .*a part of that path is a file; choose another/);
  });

  test("is removed while empty only", () => {
    const folder = createResultsFolder(root, noon);
    writeFileSync(join(folder, "kept"), "");
    removeIfEmpty(folder);
    expect(existsSync(folder)).toBeTrue();
    rmSync(join(folder, "kept"));
    removeIfEmpty(folder);
    expect(existsSync(folder)).toBeFalse();
  });
});

describe("atomic writing", () => {
  test("replaces a file and leaves no temporary one", () => {
    const path = join(root, "run.json");
    writeAtomically(path, "old");
    writeAtomically(path, "new");
    expect(readFileSync(path, "utf8")).toBe("new");
    expect(readdirSync(root)).toEqual(["run.json"]);
  });

  test("a failure keeps the old content and leaves no temporary file", () => {
    const path = join(root, "folder");
    writeAtomically(join(root, "other"), "kept");
    createResultsFolder(path);
    expect(() => writeAtomically(path, "text")).toThrow(ResultsError);
    expect(readdirSync(root).sort()).toEqual(["folder", "other"]);
  });
});

describe("manifest facts", () => {
  test("the host has a name, cores and memory", () => {
    const facts = hostFacts();
    expect(facts.cpu).not.toBe("");
    expect(facts.cores).toBeGreaterThan(0);
    expect(facts.memoryBytes).toBeGreaterThan(2 ** 20);
  });

  test("outside of a checkout there is no commit", () => {
    expect(gitState(root)).toBeNull();
  });

  test("a changed checkout is dirty", () => {
    const git = (...args: string[]) => Bun.spawnSync(["git", ...args], { cwd: root });
    git("init", "-q");
    const identity = ["-c", "user.name=a", "-c", "user.email=a@b"];
    git(...identity, "commit", "-q", "--allow-empty", "-m", "first");
    expect(gitState(root)).toEqual({
      commit: expect.stringMatching(/^[0-9a-f]{40}$/),
      dirty: false,
    });
    writeFileSync(join(root, "file"), "");
    expect(gitState(root)?.dirty).toBeTrue();
  });

  test("the command line can be pasted into a shell", () => {
    const argv = [
      "bun",
      join(process.cwd(), "apps/x.ts"),
      "--B",
      "8",
      "--dataset",
      "it's here.txt",
    ];
    expect(commandLine(argv)).toBe("bun apps/x.ts --B 8 --dataset 'it'\\''s here.txt'");
  });
});

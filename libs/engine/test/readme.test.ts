import { expect, test } from "bun:test";
import { rm } from "node:fs/promises";
import { join, resolve } from "node:path";

const root = resolve(import.meta.dir, "../../..");

/** The fenced blocks of README.md in one language. */
async function blocks(language: string): Promise<string[]> {
  const text = await Bun.file(join(root, "README.md")).text();
  return [...text.matchAll(new RegExp(`^\`\`\`${language}\\n([\\s\\S]*?)^\`\`\``, "gm"))].map(
    (match) => match[1] as string,
  );
}

test("README's embedding example runs as it stands", async () => {
  const [example] = await blocks("ts");
  expect(example).toContain("Engine.load");
  // Beside this test, so that the workspace's packages resolve as they do for a member of it.
  const file = join(import.meta.dir, `readme_example_${process.pid}.ts`);
  try {
    await Bun.write(file, example as string);
    const child = Bun.spawn([process.execPath, file], { stdout: "pipe", stderr: "pipe" });
    const [out, err] = await Promise.all([
      new Response(child.stdout).text(),
      new Response(child.stderr).text(),
    ]);
    expect(err).toBe("");
    expect(await child.exited).toBe(0);
    expect(out).toMatch(/\nlength; \d+ iterations for 64 tokens\n$/);
  } finally {
    await rm(file, { force: true });
  }
}, 20_000);

test("README's set-up block is the two commands that CI runs", async () => {
  const [setUp] = await blocks("sh");
  const commands = (setUp as string).split("\n").filter((line) => line.length > 0);
  expect(commands).toHaveLength(2);
  expect(commands[0]).toStartWith(
    "npm install -g bun@1.4.5 && bun install && bun run bench:longspec",
  );
  expect(commands[1]).toStartWith("bun test");
});

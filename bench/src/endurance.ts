/**
 * `bun bench/src/endurance.ts`: what a long run does to the process. Memory over many iterations of self-speculation (it must not grow), the process's memory over
 * its weights and KV, and how much a busy neighbour on the same cores slows a step.
 */
import { parseArgs } from "node:util";
import { embeddedTarget } from "@magicdec/embedded";
import { type DecodeResult, Runner, type SpeculationConfig } from "@magicdec/engine";
import { heapStats } from "bun:jsc";
import { cpus } from "node:os";

const { values } = parseArgs({
  options: {
    iterations: { type: "string", default: "10000" },
    json: { type: "boolean", default: false },
    help: { type: "boolean", default: false },
  },
});
if (values.help) {
  console.log(`usage: bun bench/src/endurance.ts [--iterations 10000] [--json]

Decodes by self-speculation (batch 4, prefix 512, gamma 4) until that many iterations have run and
compares memory after the first tenth and at the end; then times 8 x 2000 tokens with and without
one busy process beside it.`);
  process.exit(0);
}
const wanted = Number(values.iterations);

const spec: SpeculationConfig = {
  method: "self",
  cache: "streaming",
  gamma: 4,
  budget: 256,
  sinks: 16,
  window: 32,
  reselectEvery: 512,
  rule: "match",
};
const sampling = { temperature: 0.8, topK: 0, topP: 1, minP: 0, seed: 1 };

function memory(): { rssMiB: number; heapMiB: number } {
  Bun.gc(true);
  return { rssMiB: process.memoryUsage.rss() / 2 ** 20, heapMiB: heapStats().heapSize / 2 ** 20 };
}

function randomPrompts(batch: number, length: number): Int32Array[] {
  return Array.from({ length: batch }, (_, s) =>
    Int32Array.from({ length }, (_, i) => (i === 0 ? 0 : (7919 * i + 104729 * s) % 4000)),
  );
}

async function growth() {
  using runner = await Runner.load({
    target: embeddedTarget,
    device: "cpu",
    batch: 4,
    maxTokens: 4096,
  });
  await runner.prefill(randomPrompts(4, 512));
  let iterations = 0;
  let early: ReturnType<typeof memory> | undefined;
  while (iterations < wanted) {
    const { stats } = await runner.decode(spec, sampling, { maxNewTokens: 3400 });
    iterations += stats.iterations;
    if (early === undefined && iterations >= wanted / 10) early = memory();
    process.stderr.write(`\r${iterations} of ${wanted} iterations`);
  }
  process.stderr.write("\n");
  const late = memory();
  const { parts } = runner.memoryPlan;
  const planned = parts
    .filter((part) => part.name === "weights" || part.name === "KV")
    .reduce((sum, part) => sum + part.bytes / 2 ** 20, 0);
  return { iterations, early, late, weightsAndKvMiB: planned };
}

async function neighbour() {
  using runner = await Runner.load({
    target: embeddedTarget,
    device: "cpu",
    batch: 8,
    maxTokens: 2200,
  });
  await runner.prefill(randomPrompts(8, 2000));
  const perIteration = ({ stats }: DecodeResult) => stats.wallMs / stats.iterations;
  const measure = async () => {
    const runs: number[] = [];
    for (let i = 0; i < 5; i++) {
      runs.push(perIteration(await runner.decode(spec, sampling, { maxNewTokens: 100 })));
    }
    return runs.sort((a, b) => a - b)[2] as number;
  };
  await measure();
  const alone = await measure();
  const busy = Bun.spawn([process.execPath, "-e", "for (;;) Math.sqrt(Math.random())"]);
  await Bun.sleep(300);
  const beside = await measure();
  busy.kill();
  await busy.exited;
  return { cores: cpus().length, msAlone: alone, msBeside: beside, slowdown: beside / alone };
}

const result = { growth: await growth(), neighbour: await neighbour() };
if (values.json) {
  console.log(JSON.stringify(result));
} else {
  const { growth: g, neighbour: n } = result;
  const row = (name: string, m: { rssMiB: number; heapMiB: number } | undefined) =>
    `${name.padEnd(22)} RSS ${m?.rssMiB.toFixed(1)} MiB   JavaScript heap ${m?.heapMiB.toFixed(2)} MiB`;
  console.log(row("after a tenth", g.early));
  console.log(row(`after ${g.iterations} iterations`, g.late));
  console.log(`weights and KV as planned ${g.weightsAndKvMiB.toFixed(1)} MiB`);
  console.log(
    `an iteration of 8 x 2000 tokens: ${n.msAlone.toFixed(2)} ms alone, ${n.msBeside.toFixed(2)} ms beside ` +
      `one busy process on ${n.cores} cores: ${n.slowdown.toFixed(2)} x`,
  );
}

/**
 * `bun bench/src/event_loop.ts`: how free the host's event loop stays while an engine generates in its Worker. A timer that should fire every
 * millisecond measures its own lateness; the same on an idle process is the control.
 */
import { embeddedTarget } from "@magicdec/embedded";
import { Engine } from "@magicdec/engine";

const seconds = Number(Bun.argv[2] ?? 5);

if (Bun.argv.includes("--help") || !(seconds > 0)) {
  console.log("usage: bun bench/src/event_loop.ts [seconds per measurement, default 5] [--json]");
  process.exit(Bun.argv.includes("--help") ? 0 : 2);
}

interface Delay {
  readonly samples: number;
  readonly msP50: number;
  readonly msP99: number;
  readonly msMax: number;
}

async function measure(): Promise<Delay> {
  const delays: number[] = [];
  const until = performance.now() + seconds * 1000;
  while (performance.now() < until) {
    const from = performance.now();
    await new Promise((resolve) => setTimeout(resolve, 1));
    delays.push(performance.now() - from - 1);
  }
  delays.sort((a, b) => a - b);
  const at = (share: number) => delays[Math.floor(share * (delays.length - 1))] ?? 0;
  return { samples: delays.length, msP50: at(0.5), msP99: at(0.99), msMax: at(1) };
}

const idle = await measure();
await using engine = await Engine.load({ model: embeddedTarget, maxBatch: 4, maxTokens: 8192 });
const stop = new AbortController();
const running = Array.from({ length: 4 }, (_, i) =>
  engine
    .generate({
      prompt: "It was a dark night, and the ship lay still. ".repeat(100 + i),
      maxNewTokens: 4000,
      temperature: 0.8,
      ignoreEos: true,
      signal: stop.signal,
    })
    .result(),
);
const busy = await measure();
stop.abort();
const tokens = (await Promise.all(running)).reduce((sum, result) => sum + result.tokens.length, 0);

if (Bun.argv.includes("--json")) {
  console.log(JSON.stringify({ seconds, idle, busy, tokens }));
} else {
  const row = (name: string, delay: Delay) =>
    `${name.padEnd(12)} p50 ${delay.msP50.toFixed(2)} ms   p99 ${delay.msP99.toFixed(2)} ms   ` +
    `max ${delay.msMax.toFixed(2)} ms   (${delay.samples} timers)`;
  console.log("lateness of a 1 ms timer on the host's event loop");
  console.log(row("idle", idle));
  console.log(row("generating", busy));
  console.log(`${tokens} tokens were generated meanwhile`);
}

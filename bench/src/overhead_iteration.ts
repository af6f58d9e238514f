import { embeddedDraft, embeddedTarget } from "@magicdec/embedded";
import {
  type DeviceName,
  Runner,
  type SamplingConfig,
  type SpeculationConfig,
} from "@magicdec/engine";

const batch = 8;
const promptTokens = 200;
const newTokens = 300;

/** Means of one iteration, microseconds. */
export interface IterationCost {
  readonly name: string;
  readonly graphs: boolean;
  /**
   * Wall time that the host did not wait for results. It holds the captures as sequences leave the
   * batch, and where other threads have the cores, the host's turn to come.
   */
  readonly hostUs: number;
  /** Processor time of the host's thread, its short spins before it sleeps included. */
  readonly hostCpuUs: number;
  /** Draft, verify, accept and selection, by the device's clock. */
  readonly deviceUs: number;
  /** Wall time beside the device's phases. */
  readonly otherUs: number;
  readonly iterations: number;
}

const sampling: SamplingConfig = { temperature: 0.6, topK: 0, topP: 1, minP: 0, seed: 1 };

const off: SpeculationConfig = {
  method: "off",
  cache: "full",
  gamma: 0,
  budget: 64,
  sinks: 4,
  window: 16,
  reselectEvery: 32,
  rule: "match",
};

const streaming: SpeculationConfig = { ...off, method: "self", cache: "streaming", gamma: 4 };

const methods: readonly (readonly [string, SpeculationConfig])[] = [
  ["baseline", off],
  ["self, streaming, gamma 4", streaming],
  ["self, snapkv, gamma 4", { ...streaming, cache: "snapkv" }],
  ["draft model, gamma 4", { ...off, method: "model", gamma: 4 }],
];

/** Decodes short prompts of the embedded pair by each method, with graphs and without. */
export async function measureIterations(
  device: DeviceName,
  threads: number,
): Promise<readonly IterationCost[]> {
  const costs: IterationCost[] = [];
  for (const graphs of [true, false]) {
    using runner = await Runner.load({
      target: embeddedTarget,
      draft: embeddedDraft,
      device,
      threads,
      batch,
      maxTokens: promptTokens + newTokens,
      graphs,
    });
    await runner.prefill(prompts(runner.target.config.vocabSize), { needDraft: true });
    for (const [name, spec] of methods) {
      // The first run captures its graphs and warms the caches.
      await runner.decode(spec, sampling, { maxNewTokens: 20 });
      const cpu = process.threadCpuUsage();
      const { stats } = await runner.decode(spec, sampling, { maxNewTokens: newTokens });
      const { user, system } = process.threadCpuUsage(cpu);
      const us = (milliseconds: number) => (1000 * milliseconds) / stats.iterations;
      costs.push({
        name,
        graphs,
        hostUs: us(stats.hostMs),
        hostCpuUs: (user + system) / stats.iterations,
        deviceUs: us(stats.msDraft + stats.msVerify + stats.msAccept + stats.msSelect),
        otherUs: us(stats.msOther),
        iterations: stats.iterations,
      });
    }
  }
  return costs;
}

/** What the tokens are is of no account: each prompt is a different walk through the vocabulary. */
function prompts(vocabSize: number): Int32Array[] {
  return Array.from({ length: batch }, (_, s) =>
    Int32Array.from({ length: promptTokens }, (_, i) => (37 * i + 1009 * s) % vocabSize),
  );
}

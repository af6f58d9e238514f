import { expect, test } from "bun:test";
import { singleRank } from "@magicdec/tensor";
import { bestCpu, forEachKind } from "@magicdec/testkit";
import {
  type ModelConfig,
  Noise,
  NoisePool,
  openModel,
  plannedWeightBytes,
  presetConfig,
  presetNames,
} from "../src/index.ts";
import { RandomWeights } from "../src/random_weights.ts";

const small: ModelConfig = {
  ...(presetConfig("llama-3.2-1b") as ModelConfig),
  hiddenSize: 192,
  intermediateSize: 320,
  layers: 2,
  heads: 4,
  kvHeads: 2,
  vocabSize: 777,
};

test("presets have the parameters that their names say", () => {
  using device = bestCpu().open({ threads: 1 });
  const billions = presetNames.map((name) => {
    const config = presetConfig(name) as ModelConfig;
    // Tied tables stand twice on a device: as rows to look up, and packed.
    const twice = config.tiedEmbeddings ? 2 * config.vocabSize * config.hiddenSize : 0;
    return [name, (plannedWeightBytes(device, config) - twice) / 2e9] as const;
  });
  expect(
    Object.fromEntries(billions.map(([name, size]) => [name, Number(size.toFixed(2))])),
  ).toEqual({ "llama-3.2-1b": 1.24, "llama-3.1-8b": 8.03, "llama-3.1-70b": 70.55 });
  expect(presetConfig("llama-9")).toBeUndefined();
});

test("noise is the same for the same seed, and normal", () => {
  const values = new Noise(7).normals(20_000, 2);
  expect(values).toEqual(new Noise(7).normals(20_000, 2));
  expect(values).not.toEqual(new Noise(8).normals(20_000, 2));
  const mean = values.reduce((sum, x) => sum + x, 0) / values.length;
  const variance = values.reduce((sum, x) => sum + x * x, 0) / values.length;
  expect(Math.abs(mean)).toBeLessThan(0.1);
  expect(variance).toBeWithin(3.8, 4.2);
});

forEachKind((backend) => {
  test("a pool fills every element of any size with finite, varied values", () => {
    using device = backend.open();
    using pool = new NoisePool(device, 3, 1);
    for (const [rows, dtype] of [
      [3, "f32"],
      [1000, "bf16"],
      [170_000, "f32"],
    ] as const) {
      using out = device.alloc([rows, 257], dtype);
      pool.fill(out);
      const values = dtype === "f32" ? (out.read() as Float32Array) : out.read();
      const ends = values.subarray(-257);
      expect(ends.every((x) => x !== 0 && Number.isFinite(x))).toBeTrue();
      expect(values.filter((x) => x === 0).length).toBeLessThan(values.length / 1000);
      expect(new Set(values.subarray(0, 5000)).size).toBeGreaterThan(500);
    }
  });

  test("random weights are their seed's, varied, and of the planned size", async () => {
    using device = backend.open();
    const shape = { name: "model.layers.0.mlp.down_proj.weight", shape: [12_000, 256] };
    const bits = (seed: number) => {
      using weights = new RandomWeights(device, seed, () => {});
      const { data } = weights.matrix([shape]);
      const out = data.read();
      data.dispose();
      return out as Uint8Array;
    };
    const first = bits(1);
    expect(Bun.hash(first)).toBe(Bun.hash(bits(1)));
    expect(Bun.hash(first)).not.toBe(Bun.hash(bits(2)));
    expect(first.filter((byte) => byte === 0).length).toBeLessThan(first.length / 10);
    const before = device.handles.size;
    const { load } = await openModel({ config: small, seed: 1 });
    const model = await load(device, singleRank);
    expect(model.allocatedBytes).toBe(plannedWeightBytes(device, small));
    model.dispose();
    expect(device.handles.size).toBe(before);
  });
});

import { expect, test } from "bun:test";
import { fileURLToPath } from "node:url";
import { PagedKv } from "@magicdec/cache";
import { fromBf16, singleRank, type Tensor } from "@magicdec/tensor";
import { forEachBackend } from "@magicdec/testkit";
import { z } from "zod";
import { type ForwardBatch, Model, Workspace } from "../src/index.ts";

/** Logits and greedy tokens of Hugging Face transformers (fixtures/make_fixtures.py) on tiny models. */

const expectedSchema = z.object({ prompt: z.array(z.number()), greedy: z.array(z.number()) });

async function fixture(name: string) {
  const folder = fileURLToPath(new URL(`./fixtures/${name}`, import.meta.url));
  const expected = expectedSchema.parse(await Bun.file(`${folder}/expected.json`).json());
  const f32 = new Float32Array(await Bun.file(`${folder}/logits_f32.bin`).arrayBuffer());
  const bf16 = fromBf16(new Uint16Array(await Bun.file(`${folder}/logits_bf16.bin`).arrayBuffer()));
  return { folder, ...expected, f32, bf16 };
}

/** Root mean square of a - b over that of b. */
function relativeError(a: Float32Array, b: Float32Array): number {
  let difference = 0;
  let size = 0;
  for (const [i, value] of b.entries()) {
    difference += ((a[i] as number) - value) ** 2;
    size += value ** 2;
  }
  return Math.sqrt(difference / size);
}

forEachBackend(({ open }) => {
  for (const name of ["mha_tied", "gqa2_untied", "gqa4_llama3", "gqa2_linear"]) {
    test(`${name}, against transformers: logits at every position, and the greedy continuation`, async () => {
      const { folder, prompt, greedy, f32, bf16 } = await fixture(name);
      using device = open();
      using model = await Model.load(device, singleRank, folder);
      const { layers, kvHeads, headDim, vocabSize } = model.config;
      const pages = 2;
      using cache = new PagedKv(device, {
        layers,
        kvHeads,
        headDim,
        pageSize: 64,
        pages,
        batch: 1,
        maxPagesPerSequence: pages,
      });
      cache.ensure(0, prompt.length + greedy.length);
      using workspace = new Workspace(device, model.config, prompt.length, cache);
      const run = (tokens: number[], start: number): Float32Array => {
        const rows = tokens.length;
        const owned: Tensor[] = [];
        const i32 = (values: number[], shape = [values.length]) => {
          const tensor = device.from(Int32Array.from(values), shape, "i32");
          owned.push(tensor);
          return tensor;
        };
        const batch: ForwardBatch = {
          rows,
          ids: i32(tokens, [rows, 1]),
          idsStride: 1,
          positions: i32(tokens.map((_, i) => start + i)),
          rowSeq: i32(tokens.map(() => 0)),
          qStart: i32([0, rows]),
          kvLen: i32([start + rows]),
          cache,
        };
        const logits = device.alloc([rows, vocabSize], "f32");
        model.forward(workspace, batch, { logits });
        const out = logits.read() as Float32Array;
        for (const tensor of [...owned, logits]) tensor.dispose();
        return out;
      };
      const logits = run(prompt, 0);
      // Theirs in bf16 is as far from theirs in f32 as this arithmetic allows; ours must not be farther.
      const theirs = relativeError(bf16, f32);
      const ours = relativeError(logits, f32);
      expect(ours).toBeLessThan(Math.max(0.01, 1.1 * theirs));

      const argmax = (row: Float32Array) => row.indexOf(Math.max(...row));
      const produced: number[] = [argmax(logits.subarray(-vocabSize))];
      while (produced.length < greedy.length) {
        const at = prompt.length + produced.length - 1;
        produced.push(argmax(run([produced.at(-1) as number], at)));
      }
      expect(produced).toEqual(greedy);
    });
  }
});

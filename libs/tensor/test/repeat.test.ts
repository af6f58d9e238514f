// The same call over and over on a GPU, over more keys and values than its second-level cache holds: where blocks hand each
// other partial results, a race shows as bits that change now and then.

import { expect, test } from "bun:test";
import { forEachKind } from "@magicdec/testkit";
import { attention, attentionWorkspaceBytes } from "@magicdec/tensor";

const [b, length, launches] = [8, 24_100, 150];
const [heads, kvHeads, headDim, pageSize] = [32, 8, 128, 256];

forEachKind((backend) => {
  if (backend.kind !== "cuda") return;
  test.each([8, 4, 1, 17])(
    "attention of %i rows a sequence has the same bits each time",
    (rows) => {
      using device = backend.open();
      using stack = new DisposableStack();
      const pages = b * Math.ceil(length / pageSize);
      const shape = [2 * pages, kvHeads, pageSize, headDim];
      const data = stack.use(device.alloc(shape, "bf16"));
      // Each page another block of noise: what a page holds need not be new, only varied.
      const noise = Uint16Array.from({ length: 1 << 20 }, () => {
        const sign = Math.random() < 0.5 ? 0x8000 : 0;
        return sign | (0x3e00 + Math.floor(Math.random() * 0x180));
      });
      const pageElements = 2 * kvHeads * pageSize * headDim;
      for (let page = 0; page < pages; page++) {
        const part = data.view([pageElements / 2], { byteOffset: 2 * page * pageElements });
        part.write(noise.subarray(0, pageElements / 2));
        const values = data.view([pageElements / 2], {
          byteOffset: 2 * page * pageElements + pageElements,
        });
        values.write(noise.subarray(noise.length - pageElements / 2));
        noise.set(noise.slice(0, 4099), noise.length - 4099 - (page % 7));
      }
      const table = Int32Array.from({ length: pages }, (_, i) => i);
      const q = stack.use(device.alloc([b * rows, heads, headDim], "bf16"));
      q.write(noise.subarray(0, b * rows * heads * headDim));
      const starts = Int32Array.from({ length: b + 1 }, (_, i) => i * rows);
      const outs = Array.from({ length: launches }, () => stack.use(device.alloc(q.shape, "bf16")));
      const op = {
        q,
        out: outs[0] as (typeof outs)[0],
        qStart: stack.use(device.from(starts, [b + 1], "i32")),
        kvLen: stack.use(device.from(new Int32Array(b).fill(length), [b], "i32")),
        blockTable: stack.use(device.from(table, [b, pages / b], "i32")),
        cache: { data, layers: 1, pages, pageSize, kvHeads, headDim },
        layer: 0,
        scale: 1 / Math.sqrt(headDim),
      };
      const workspace = stack.use(device.alloc([attentionWorkspaceBytes(op)], "u8"));
      for (const out of outs) attention({ ...op, out, workspace });
      const bits = outs.map((out) => Bun.hash(out.read() as Uint16Array));
      expect(new Set(bits).size).toBe(1);
    },
    60_000,
  );
});

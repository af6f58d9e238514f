// The same call over and over on a GPU, over far more keys and values than its second-level cache holds: a race between blocks
// that hand each other partial results, or between copies and reads of shared memory, shows as bits that change now and then.

import { expect, test } from "bun:test";
import { forEachKind } from "@magicdec/testkit";
import { type Tensor, attention, attentionWorkspaceBytes, copy } from "@magicdec/tensor";

/** At these sizes a kernel with such a race gave other bits in 5 % of launches with 4 rows and in all with 8. */
const [b, length, launches] = [16, 32_032, 100];
const [heads, kvHeads, headDim, pageSize] = [32, 8, 128, 512];

/** Noise of size 1/8 to 2, bf16's bits. */
function noise(count: number): Uint16Array {
  return Uint16Array.from({ length: count }, () => {
    const sign = Math.random() < 0.5 ? 0x8000 : 0;
    return sign | (0x3e00 + Math.floor(Math.random() * 0x200));
  });
}

/** The period is no multiple of a page, so that no two pages hold the same. */
function fillWithNoise(data: Tensor): void {
  const elements = data.shape.reduce((product, n) => product * n, 1);
  const period = 3 * 2 * kvHeads * pageSize * headDim + 4104;
  data.view([period]).write(noise(period));
  for (let done = period; done < elements; done *= 2) {
    const count = Math.min(done, elements - done);
    copy({ source: data.view([count]), out: data.view([count], { byteOffset: 2 * done }) });
  }
}

forEachKind((backend) => {
  if (backend.kind !== "cuda") return;
  test("attention of 8, 4, 1, 16 and 17 rows a sequence has the same bits each time", () => {
    using device = backend.open();
    using stack = new DisposableStack();
    const pages = b * Math.ceil(length / pageSize);
    const data = stack.use(device.alloc([2 * pages, kvHeads, pageSize, headDim], "bf16"));
    fillWithNoise(data);
    const table = Int32Array.from({ length: pages }, (_, i) => i);
    const blockTable = stack.use(device.from(table, [b, pages / b], "i32"));
    const kvLen = stack.use(device.from(new Int32Array(b).fill(length), [b], "i32"));
    for (const rows of [8, 4, 1, 16, 17]) {
      using call = new DisposableStack();
      const q = call.use(device.alloc([b * rows, heads, headDim], "bf16"));
      q.write(noise(b * rows * heads * headDim));
      const starts = Int32Array.from({ length: b + 1 }, (_, i) => i * rows);
      const op = {
        q,
        out: call.use(device.alloc(q.shape, "bf16")),
        qStart: call.use(device.from(starts, [b + 1], "i32")),
        kvLen,
        blockTable,
        cache: { data, layers: 1, pages, pageSize, kvHeads, headDim },
        layer: 0,
        scale: 1 / Math.sqrt(headDim),
      };
      const workspace = call.use(device.alloc([attentionWorkspaceBytes(op)], "u8"));
      // Launches that follow each other closely, because then a copy's time varies.
      const outs = Array.from({ length: launches }, () => call.use(device.alloc(q.shape, "bf16")));
      for (const out of outs) attention({ ...op, out, workspace });
      const [first, ...others] = outs.map((out) => Bun.hash(out.read() as Uint16Array));
      const different = others.filter((bits) => bits !== first).length;
      expect({ rows, different }).toEqual({ rows, different: 0 });
    }
  }, 60_000);
});

// Sampling and acceptance against f64 references that draw from the same noise.

import { expect, test } from "bun:test";
import {
  expectClose,
  expectSame,
  forEachBackend,
  int32,
  Random,
  readNumbers,
  reference,
  rowsOf,
  seedNote,
  repeat,
} from "@magicdec/testkit";
import { accept, type Device, packSamplingParams, sample, type Tensor } from "@magicdec/tensor";

/** Where a decision is closer than this, f32 and f64 may differ. */
const closeCall = 1e-4;

function randomParams(random: Random, sequence: number): reference.Sampling {
  return {
    temperature: random.pick([0, 0.6, 1, 1.7]),
    topK: random.pick([0, 0, 1, 5, 40]),
    topP: random.pick([1, 1, 0.9, 0.5]),
    minP: random.pick([0, 0, 0.05, 0.3]),
    seed: random.u32() * 2 ** 20 + random.integer(0, 2 ** 20 - 1),
    sequence,
  };
}

function paramsTensor(device: Device, params: readonly reference.Sampling[]): Tensor {
  return device.from(packSamplingParams(params), [params.length, 8], "u32");
}

forEachBackend((backend) => {
  test("temperature 0 takes the first of the largest logits", () => {
    using device = backend.open();
    const random = new Random();
    const [b, v] = [3, 1001];
    const logits = random.normals(b * v);
    logits[v + 17] = 50;
    logits[v + 900] = 50;
    using logitsTensor = device.from(logits, [b, v], "f32");
    const greedy = { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 1, sequence: 0 };
    using params = paramsTensor(device, [greedy, greedy, greedy]);
    using at = int32(device, [4, 5, 6]);
    using out = device.alloc([b, 1], "i32");
    sample({ logits: logitsTensor, params, positions: at, out });
    const wanted = [0, 1, 2].map((i) => reference.argmax(rowsOf(logits, v, i, i + 1)));
    expectSame(out.read(), wanted, "argmax");
    expect(readNumbers(out)[1]).toBe(17);
  });

  test("draws and distributions are the reference's, for random filters, strided outputs", () => {
    using device = backend.open();
    const random = new Random();
    for (const v of [1, 2, 63, 64, 65, 257, 1500]) {
      const [b, r] = [6, 2];
      const params = Array.from({ length: b }, (_, s) => randomParams(random, s + 3));
      const logits = random.normals(b * r * v, 2);
      const at = Array.from({ length: b * r }, () => random.integer(0, 9000));
      using logitsTensor = device.from(logits, [b * r, v], "f32");
      using paramsWords = paramsTensor(device, params);
      using atTensor = int32(device, at);
      using tokens = device.alloc([b, 4], "i32");
      using probs = device.alloc([b, 3, v], "f32");
      sample({
        logits: logitsTensor,
        params: paramsWords,
        positions: atTensor,
        out: tokens.view([b, r]),
        probs: probs.view([b, r, v]),
        outStride: 4,
        probsStride: 3,
        stream: "draft",
      });
      const drawn = readNumbers(tokens);
      const distributions = readNumbers(probs);
      for (let row = 0; row < b * r; row++) {
        const [s, j] = [Math.floor(row / r), row % r];
        const own = params[s] as reference.Sampling;
        const label = `v ${v}, row ${row}, ${JSON.stringify(own)}`;
        const { p, margin } = reference.distribution(rowsOf(logits, v, row, row + 1), own);
        if (margin < closeCall) continue;
        const actual = rowsOf(distributions, v, s * 3 + j, s * 3 + j + 1);
        expectClose(actual, p, { absolute: 1e-6, relative: 1e-3, label });
        const position = (at[row] as number) + 1;
        const { token, lead } = reference.draw(p, own, "draft", position);
        if (lead > closeCall) expect(drawn[s * 4 + j], `${label} ${seedNote()}`).toBe(token);
      }
    }
  });

  test("a row draws the same token alone, among others, on any threads", () => {
    const random = new Random();
    const [b, v] = [5, 4099];
    const logits = random.normals(b * v, 2);
    const params = Array.from({ length: b }, (_, s) => randomParams(random, s));
    const at = Array.from({ length: b }, () => random.integer(0, 9000));
    let wanted: number[] | undefined;
    for (const threads of backend.threadCounts) {
      using device = backend.open({ threads });
      using logitsTensor = device.from(logits, [b, v], "f32");
      using paramsWords = paramsTensor(device, params);
      using atTensor = int32(device, at);
      using out = device.alloc([b, 1], "i32");
      using probs = device.alloc([b, 1, v], "f32");
      sample({ logits: logitsTensor, params: paramsWords, positions: atTensor, out, probs });
      const all = [...readNumbers(out), ...readNumbers(probs)];
      wanted ??= all;
      expectSame(all, wanted, `${threads ?? "a GPU's"} threads`);
      for (let i = 0; i < b; i++) {
        using one = device.alloc([1, 1], "i32");
        sample({
          logits: logitsTensor.rows(i, i + 1),
          params: paramsWords.rows(i, i + 1),
          positions: atTensor.rows(i, i + 1),
          out: one,
        });
        expectSame(one.read(), [wanted[i] as number], `row ${i} alone`);
      }
    }
  });

  test("accept by match: all, none, some; inactive sequences; lengths and chains move on", () => {
    using device = backend.open();
    const random = new Random();
    for (const gamma of [1, 2, 5, 16]) {
      const b = 6;
      const chain = Array.from({ length: b }, () =>
        Array.from({ length: gamma + 2 }, () => random.integer(0, 3)),
      );
      const target = chain.map((row, s) => {
        const follow = [...row.slice(2), random.integer(0, 3)];
        if (s === 1) follow[0] = 9;
        if (s > 1) follow[random.integer(0, gamma)] = 9;
        return follow;
      });
      const active = [1, 1, 1, 1, 0, 1];
      const lengths = Array.from({ length: b }, () => random.integer(1, 100));
      const greedy = { temperature: 0, topK: 0, topP: 1, minP: 0, seed: 1, sequence: 0 };
      using chainTensor = device.from(Int32Array.from(chain.flat()), [b, gamma + 2], "i32");
      using targetTokens = device.from(Int32Array.from(target.flat()), [b, gamma + 1], "i32");
      using params = paramsTensor(device, repeat(greedy, b));
      using activeTensor = int32(device, active);
      using lens = int32(device, lengths);
      using count = device.alloc([b], "i32");
      using out = device.alloc([b, gamma + 1], "i32");
      const state = { active: activeTensor, lens, count, out };
      accept({ chain: chainTensor, targetTokens, params, ...state, rule: "match" });
      const results = chain.map((row, s) =>
        active[s] === 0 ? [] : reference.acceptMatch(row.slice(2), target[s] ?? []).tokens,
      );
      expectMoved({ chain, lengths, results, gamma }, { chainTensor, lens, count, out });
    }
  });

  test("accept by rejection is the reference's decision for the same noise", () => {
    using device = backend.open();
    const random = new Random();
    for (const [gamma, v] of [
      [1, 2],
      [3, 65],
      [5, 300],
    ] as const) {
      const b = 8;
      const params = Array.from({ length: b }, (_, s) => randomParams(random, s));
      const lengths = Array.from({ length: b }, () => random.integer(1, 100));
      const targetLogits = random.normals(b * (gamma + 1) * v, 2);
      // The draft's logits are the target's with some noise, so that some drafts stand and some
      // fall.
      const q = params.map((own, s) =>
        Array.from({ length: gamma }, (_, j) => {
          const row = rowsOf(targetLogits, v, s * (gamma + 1) + j, s * (gamma + 1) + j + 1);
          const noisy = row.map((x) => Math.fround(x + 0.7 * random.normal()));
          return Float32Array.from(reference.distribution(noisy, own).p);
        }),
      );
      const chain = params.map((own, s) => {
        const drafts = (q[s] ?? []).map(
          (row, j) => reference.draw(row, own, "draft", (lengths[s] as number) + 1 + j).token,
        );
        return [7, 8, ...drafts];
      });
      const p = params.map((own, s) =>
        Array.from({ length: gamma + 1 }, (_, j) => {
          const row = s * (gamma + 1) + j;
          return reference.distribution(rowsOf(targetLogits, v, row, row + 1), own);
        }),
      );
      using chainTensor = device.from(Int32Array.from(chain.flat()), [b, gamma + 2], "i32");
      using logits = device.from(targetLogits, [b * (gamma + 1), v], "f32");
      const draft = Float32Array.from(q.flatMap((rows) => rows.flatMap((row) => Array.from(row))));
      using draftProbs = device.from(draft, [b, gamma, v], "f32");
      using paramsWords = paramsTensor(device, params);
      using active = int32(device, repeat(1, b));
      using lens = int32(device, lengths);
      using count = device.alloc([b], "i32");
      using out = device.alloc([b, gamma + 1], "i32");
      accept({
        chain: chainTensor,
        targetLogits: logits,
        draftProbs,
        params: paramsWords,
        active,
        lens,
        count,
        out,
        rule: "rejection",
      });
      const emitted = readNumbers(out);
      const counts = readNumbers(count);
      const results = params.map((own, s) => {
        const rows = p[s] ?? [];
        const filters = Math.min(...rows.map(({ margin }) => margin));
        const accepted = reference.acceptRejection(
          rows.map((row) => row.p),
          q[s] ?? [],
          (chain[s] ?? []).slice(2),
          own,
          lengths[s] as number,
        );
        const clear = Math.min(filters, accepted.margin) > closeCall;
        const actual = emitted.slice(s * (gamma + 1), s * (gamma + 1) + (counts[s] as number));
        if (clear) expectSame(actual, accepted.tokens, `v ${v}, ${JSON.stringify(own)}`);
        return actual;
      });
      expectMoved({ chain, lengths, results, gamma }, { chainTensor, lens, count, out });
    }
  });

  interface Before {
    chain: number[][];
    lengths: number[];
    results: number[][];
    gamma: number;
  }

  function expectMoved(
    { chain, lengths, results, gamma }: Before,
    after: { chainTensor: Tensor; lens: Tensor; count: Tensor; out: Tensor },
  ): void {
    const counts = results.map((tokens) => tokens.length);
    expectSame(after.count.read(), counts, "count");
    expectSame(
      after.lens.read(),
      lengths.map((length, s) => length + (counts[s] as number)),
      "lens",
    );
    const out = readNumbers(after.out);
    const chains = readNumbers(after.chainTensor);
    results.forEach((tokens, s) => {
      if (tokens.length === 0) return;
      const padded = [...tokens, ...repeat(-1, gamma + 1 - tokens.length)];
      expectSame(rowsOf(out, gamma + 1, s, s + 1), padded, `out of sequence ${s}`);
      const history = [chain[s]?.[1] as number, ...tokens];
      const moved = rowsOf(chains, gamma + 2, s, s + 1).slice(0, 2);
      expectSame(moved, history.slice(-2), `chain of sequence ${s}`);
    });
  }
});

import { afterAll, beforeAll, expect, test } from "bun:test";
import { embeddedDraft, embeddedTarget } from "@magicdec/embedded";
import { forEachKind } from "@magicdec/testkit";
import { Engine, type GenerateResult } from "../src/index.ts";

const prompt = "The old captain stood upon the deck, and looked out over the grey water. ".repeat(
  8,
);
forEachKind(({ device }) => {
  let engine: Engine;

  beforeAll(async () => {
    engine = await Engine.load({ model: embeddedTarget, device, maxBatch: 3, maxTokens: 2048 });
  });

  afterAll(async () => {
    await engine.close();
  });

  async function generate(options: Parameters<Engine["generate"]>[0]): Promise<GenerateResult> {
    return await engine.generate(options).result();
  }

  test("streams what it returns at the end, several tokens at a time", async () => {
    const generation = engine.generate({ prompt, maxNewTokens: 48 });
    const chunks: { tokens: readonly number[]; text: string }[] = [];
    for await (const chunk of generation) chunks.push(chunk);
    const result = await generation.result();
    expect(chunks.flatMap((chunk) => chunk.tokens)).toEqual([...result.tokens]);
    expect(chunks.map((chunk) => chunk.text).join("")).toBe(result.text);
    expect(result.tokens).toHaveLength(48);
    expect(result.finish).toBe("length");
    expect(chunks.some((chunk) => chunk.tokens.length > 1)).toBe(true);
  });

  test("greedy tokens are those without speculation, with a draft model, alone or with others", async () => {
    const want = (await generate({ prompt, maxNewTokens: 40 })).tokens;
    await using plain = await Engine.load({
      model: embeddedTarget,
      device,
      maxBatch: 1,
      maxTokens: 1024,
      speculation: { method: "off" },
    });
    expect((await plain.generate({ prompt, maxNewTokens: 40 }).result()).tokens).toEqual(want);
    await using drafted = await Engine.load({
      model: embeddedTarget,
      device,
      draftModel: embeddedDraft,
      maxBatch: 2,
      maxTokens: 1024,
      speculation: { method: "model", cache: "full", gamma: 3 },
    });
    expect((await drafted.generate({ prompt, maxNewTokens: 40 }).result()).tokens).toEqual(want);
    const together = await Promise.all(
      [40, 7, 23, 40].map((maxNewTokens) => generate({ prompt, maxNewTokens })),
    );
    for (const result of together) {
      expect(result.tokens).toEqual(want.slice(0, result.tokens.length));
    }
  }, 20_000);

  test("each request has its own sampling; a seed repeats under the rule match", async () => {
    await using coupled = await Engine.load({
      model: embeddedTarget,
      device,
      maxBatch: 3,
      maxTokens: 1024,
      speculation: { rule: "match" },
    });
    const sample = (seed: number) =>
      coupled.generate({ prompt, maxNewTokens: 24, temperature: 0.9, seed }).result();
    const [a, b, c] = await Promise.all([sample(1), sample(2), sample(1)]);
    expect(a?.tokens).toEqual(c?.tokens as number[]);
    expect(a?.tokens).not.toEqual(b?.tokens as number[]);
    expect((await sample(2)).tokens).toEqual(b?.tokens as number[]);
  });

  test("an abort ends one generation and leaves the others alone", async () => {
    const stop = new AbortController();
    const aborted = engine.generate({
      prompt,
      maxNewTokens: 1200,
      ignoreEos: true,
      signal: stop.signal,
    });
    const other = engine.generate({ prompt, maxNewTokens: 60, ignoreEos: true });
    for await (const _ of aborted) {
      stop.abort();
      break;
    }
    expect((await aborted.result()).finish).toBe("aborted");
    expect((await aborted.result()).tokens.length).toBeLessThan(1200);
    expect((await other.result()).tokens).toHaveLength(60);
    const before = engine.generate({ prompt, signal: AbortSignal.abort() });
    expect((await before.result()).finish).toBe("aborted");
  }, 20_000);

  test("bad requests are refused one by one, with what was expected", async () => {
    const refused: [Parameters<Engine["generate"]>[0], string][] = [
      [{ prompt: [] }, "expected at least one token, got none"],
      [{ prompt, maxNewTokens: 0 }, "maxNewTokens: expected an integer >= 1, got 0"],
      [{ prompt, maxNewTokens: 4000 }, "expected prompt + new tokens of at most 2048"],
      [{ prompt, temperature: -1 }, "temperature: expected 0 to 100, got -1"],
      [{ prompt, topP: 0 }, "topP: expected above 0, at most 1, got 0"],
      [{ prompt: [5, 99999] }, "expected token ids in 0 .. 4095, got 99999"],
    ];
    const good = generate({ prompt, maxNewTokens: 8 });
    for (const [request, message] of refused) {
      expect(generate(request)).rejects.toThrow(message);
    }
    expect((await good).tokens).toHaveLength(8);
  });

  test("a model that cannot be loaded rejects with the loader's message", async () => {
    const attempt = Engine.load({ model: "no/such/folder", device });
    expect(attempt).rejects.toThrow("no/such/folder");
  });

  test("closing ends what runs and refuses what comes", async () => {
    const short = await Engine.load({
      model: embeddedTarget,
      device,
      maxBatch: 1,
      maxTokens: 2048,
    });
    const running = short.generate({ prompt, maxNewTokens: 1000, ignoreEos: true });
    await short.close();
    expect((await running.result()).finish).toBe("aborted");
    expect(() => short.generate({ prompt })).toThrow("got a closed one");
  }, 20_000);
});

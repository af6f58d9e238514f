import { describe, expect, test } from "bun:test";
import { Device } from "@magicdec/tensor";
import fc from "fast-check";
import { OutOfPagesError, type PageHold, PagedKv } from "../src/index.ts";

const pageSize = 64;
const batch = 4;
const pages = 12;
const maxPages = 6;

function makeCache(device: Device): PagedKv {
  return new PagedKv(device, {
    layers: 1,
    kvHeads: 1,
    headDim: 64,
    pageSize,
    pages,
    batch,
    maxPagesPerSequence: maxPages,
  });
}

/** What the device's table says of a row. */
function tableRow(cache: PagedKv, row: number): number[] {
  const table = cache.blockTable.read() as Int32Array;
  const owned = cache.capacityTokens(row) / pageSize;
  return Array.from(table.subarray(row * maxPages, row * maxPages + owned));
}

describe("paged KV", () => {
  test("any history of growing, ending, holding and moving keeps each page with one owner", () => {
    const row = fc.integer({ min: 0, max: batch - 1 });
    const step = fc.oneof(
      fc.record({
        do: fc.constant("ensure" as const),
        row,
        tokens: fc.integer({ min: 0, max: pageSize * maxPages }),
      }),
      fc.record({ do: fc.constant("release" as const), row }),
      fc.record({ do: fc.constant("hold" as const), row }),
      fc.record({ do: fc.constant("restore" as const), row }),
      fc.record({ do: fc.constant("drop" as const), row }),
      fc.record({ do: fc.constant("move" as const), row, to: row }),
    );
    using device = Device.open({ backend: "cpu", threads: 1 });
    fc.assert(
      fc.property(fc.array(step, { maxLength: 30 }), (steps) => {
        using cache = makeCache(device);
        const holds = new Map<number, PageHold>();
        const rows: number[][] = Array.from({ length: batch }, () => []);
        for (const action of steps) {
          const owned = rows[action.row] as number[];
          switch (action.do) {
            case "ensure": {
              const needed = Math.ceil(action.tokens / pageSize) - owned.length;
              const before = cache.freePages;
              if (needed > before) {
                expect(() => cache.ensure(action.row, action.tokens)).toThrow(OutOfPagesError);
                expect(cache.freePages).toBe(before);
              } else cache.ensure(action.row, action.tokens);
              rows[action.row] = tableRow(cache, action.row);
              break;
            }
            case "release":
              cache.release(action.row);
              rows[action.row] = [];
              break;
            case "hold":
              if (!holds.has(action.row)) holds.set(action.row, cache.hold(action.row));
              break;
            case "restore": {
              const hold = holds.get(action.row);
              if (hold === undefined) break;
              cache.restore(action.row, hold);
              rows[action.row] = [...hold.pages];
              break;
            }
            case "drop": {
              const hold = holds.get(action.row);
              if (hold !== undefined) cache.drop(hold);
              holds.delete(action.row);
              break;
            }
            case "move": {
              const target = rows[action.to] as number[];
              if (action.to === action.row || target.length > 0) break;
              cache.moveRow(action.row, action.to);
              rows[action.to] = owned;
              rows[action.row] = [];
              break;
            }
          }
        }
        const used = new Set<number>();
        for (const [index, owned] of rows.entries()) {
          expect(tableRow(cache, index)).toEqual(owned);
          for (const page of owned) used.add(page);
        }
        for (const hold of holds.values()) for (const page of hold.pages) used.add(page);
        // Nobody shares a page except through a hold of the same pages.
        const exclusive = rows.filter(
          (owned) => ![...holds.values()].some((hold) => hold.pages.some((p) => owned.includes(p))),
        );
        const flat = exclusive.flat();
        expect(new Set(flat).size).toBe(flat.length);
        expect(cache.freePages).toBe(pages - used.size);
      }),
      { numRuns: 200 },
    );
  });

  test("a sequence longer than the table is refused with both numbers", () => {
    using device = Device.open({ backend: "cpu", threads: 1 });
    using cache = makeCache(device);
    expect(() => cache.ensure(0, pageSize * maxPages + 1)).toThrow(
      "expected a sequence of at most 384 tokens, got 385",
    );
  });
});

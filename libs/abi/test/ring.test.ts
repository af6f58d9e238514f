import { expect, test } from "bun:test";
import { DescriptorRing, maxDescBytes, structBytes } from "../src/index.ts";

test("slots are 64-byte aligned, inside the ring, and those of one call do not overlap", () => {
  const ring = new DescriptorRing();
  let previous = Number.NEGATIVE_INFINITY;
  for (let i = 0; i < 1000; i++) {
    const slot = ring.take();
    expect((ring.address + slot) % 64).toBe(0);
    expect(slot).toBeGreaterThanOrEqual(0);
    expect(slot + maxDescBytes).toBeLessThanOrEqual(ring.u32.byteLength);
    expect(Math.abs(slot - previous)).toBeGreaterThanOrEqual(maxDescBytes);
    previous = slot;
  }
});

test("a slot has room for every struct", () => {
  for (const [name, bytes] of Object.entries(structBytes)) {
    expect(bytes, name).toBeLessThanOrEqual(maxDescBytes);
  }
});

// Moving bytes on the device.

import { StatusError, writeCopyDesc, writePublishDesc } from "@magicdec/abi";
import type { Tensor } from "../tensor.ts";

export interface CopyOp {
  readonly source: Tensor;
  readonly out: Tensor;
  /** Bytes of a run; all of `source` by default. */
  readonly bytes?: number | undefined;
  /** Bytes from one run to the next; `bytes` by default. */
  readonly sourceStride?: number | undefined;
  /** Bytes from one run to the next; `bytes` by default. */
  readonly outStride?: number | undefined;
  /** 1 by default. */
  readonly count?: number | undefined;
}

/** Copies `count` runs of `bytes` bytes. Source and destination must not overlap. */
export function copy(op: CopyOp): void {
  const { source, out, count = 1, bytes = source.bytes } = op;
  const { sourceStride = bytes, outStride = bytes } = op;
  const { device } = out;
  const { ring, symbols, context } = device;
  requireInside("source", source, count, bytes, sourceStride);
  requireInside("out", out, count, bytes, outStride);
  const slot = ring.take();
  writeCopyDesc(ring, slot, {
    source: source.address,
    out: out.address,
    bytes,
    sourceStride,
    outStride,
    count,
  });
  device.check("md_copy", symbols.md_copy(context, ring.address + slot));
}

function requireInside(
  name: string,
  tensor: Tensor,
  count: number,
  bytes: number,
  stride: number,
): void {
  const end = (count - 1) * stride + bytes;
  if (Number.isInteger(end) && count >= 1 && bytes >= 0 && stride >= 0 && end <= tensor.bytes)
    return;
  throw new StatusError(
    "invalid_argument",
    "copy",
    `copy: expected runs inside the ${tensor.bytes} bytes of ${name} ${tensor.toString()}, ` +
      `got ${count} of ${bytes} bytes, ${stride} apart`,
  );
}

export interface PublishOp {
  /** (bytes) u8 */
  readonly record: Tensor;
  /** (slots, bytes) u8, of kind "host" where the host reads it */
  readonly ring: Tensor;
  /** (1) u32 */
  readonly counter: Tensor;
}

/**
 * Appends a record to a ring that the host reads: ring[counter % slots] = record, then counter +=
 * 1.
 */
export function publish(op: PublishOp): void {
  const { device } = op.ring;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  writePublishDesc(ring, slot, op);
  device.check("md_publish", symbols.md_publish(context, ring.address + slot));
}

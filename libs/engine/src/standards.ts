import type { GraphSizes } from "@magicdec/speculation";
import type { Device } from "@magicdec/tensor";

/** What suits a device where nothing is asked for. */

/**
 * Tokens of a page. A head's K of one page is one run of memory. A CPU's prefetchers want long ones: on two Zen 4 cores a decode step at 8 x 8000 takes
 * 1.4 times its bytes over the read bandwidth with pages of 64, 1.26 with 256, 1.2 with 512 and 1024. A GPU reads tiles of 64 tokens, each contiguous:
 * larger pages only shorten its tables, and leave more unused at the end of each sequence.
 */
export function standardPageSize({ backend }: Pick<Device, "backend">): number {
  return backend === "cuda" ? 256 : 512;
}

/**
 * Rows of a prefill forward, the best first; the next where memory does not suffice. A CPU's caches hold the activations of 512 rows; a GPU's matrix
 * units want all rows that there are.
 */
export function prefillChunks({ backend }: Pick<Device, "backend">): readonly number[] {
  return backend === "cuda" ? [8192, 4096, 2048, 1024, 512] : [512];
}

/**
 * A CPU captures an iteration in a fraction of a millisecond, and computing rows that hold no sequence would cost it their share of the arithmetic. On a
 * GPU it is the other way round: an iteration is thousands of nodes, and a few rows more are hidden behind the reading of weights and caches.
 */
export function standardGraphSizes({
  backend,
}: Pick<Device, "backend">): Exclude<GraphSizes, "none"> {
  return backend === "cuda" ? "rounded" : "exact";
}

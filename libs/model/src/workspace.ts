import type { PagedKv, PagedKvOptions } from "@magicdec/cache";
import { type Device, plannedAttentionWorkspaceBytes, type Tensor } from "@magicdec/tensor";
import type { ModelConfig } from "./config.ts";

/** Views of the workspace for one row count. */
export interface RowBuffers {
  /** (rows, hidden) the residual stream. */
  readonly x: Tensor;
  /** (rows, hidden) rows picked for logits. */
  readonly picked: Tensor;
  readonly normed: Tensor;
  readonly qkv: Tensor;
  /** (rows, heads, headDim) */
  readonly q: Tensor;
  readonly qSink: Tensor;
  readonly attended: Tensor;
  /** `attended` as (rows, heads * headDim). */
  readonly attendedRows: Tensor;
  readonly inner: Tensor;
  /** (rows, headDim) f32 */
  readonly rope: Tensor;
  readonly ropeSink: Tensor;
}

/** Activations of a forward of at most `maxRows` rows. One serves prefill, draft and verify of a model, since they never overlap. */
export class Workspace implements Disposable {
  readonly attention: Tensor;
  readonly #buffers: RowBuffers;
  readonly #views = new Map<number, RowBuffers>();

  constructor(
    device: Device,
    config: ModelConfig,
    readonly maxRows: number,
    /** The cache that attention reads; its capacity bounds the attention workspace. */
    cache: PagedKv,
  ) {
    const { hiddenSize, intermediateSize, heads, kvHeads, headDim } = config;
    const rows = (columns: number) => device.alloc([maxRows, columns], "bf16");
    const headed = () => device.alloc([maxRows, heads, headDim], "bf16");
    const attended = headed();
    this.#buffers = {
      x: rows(hiddenSize),
      picked: rows(hiddenSize),
      normed: rows(hiddenSize),
      qkv: rows((heads + 2 * kvHeads) * headDim),
      q: headed(),
      qSink: headed(),
      attended,
      attendedRows: attended.view([maxRows, heads * headDim]),
      inner: rows(intermediateSize),
      rope: device.alloc([maxRows, headDim], "f32"),
      ropeSink: device.alloc([maxRows, headDim], "f32"),
    };
    const attentionSize = attentionBytes(device, config, maxRows, cache.options);
    this.attention = device.alloc([attentionSize], "u8");
  }

  /** The first `rows` rows of every buffer. */
  forRows(rows: number): RowBuffers {
    const known = this.#views.get(rows);
    if (known !== undefined) return known;
    if (rows < 1 || rows > this.maxRows) {
      throw new RangeError(`workspace: expected 1 to ${this.maxRows} rows, got ${rows}`);
    }
    const b = this.#buffers;
    const made: RowBuffers = {
      x: b.x.rows(0, rows),
      picked: b.picked.rows(0, rows),
      normed: b.normed.rows(0, rows),
      qkv: b.qkv.rows(0, rows),
      q: b.q.rows(0, rows),
      qSink: b.qSink.rows(0, rows),
      attended: b.attended.rows(0, rows),
      attendedRows: b.attendedRows.rows(0, rows),
      inner: b.inner.rows(0, rows),
      rope: b.rope.rows(0, rows),
      ropeSink: b.ropeSink.rows(0, rows),
    };
    this.#views.set(rows, made);
    return made;
  }

  [Symbol.dispose](): void {
    this.attention.dispose();
    for (const tensor of Object.values(this.#buffers) as Tensor[]) {
      if (tensor !== this.#buffers.attendedRows) tensor.dispose();
    }
  }
}

/** Bytes of a workspace for forwards of at most `maxRows` rows over such a cache. */
export function workspaceBytes(
  device: Device,
  config: ModelConfig,
  maxRows: number,
  cache: PagedKvOptions,
): number {
  const { hiddenSize, intermediateSize, heads, kvHeads, headDim } = config;
  const attention = (heads + 2 * kvHeads) * headDim + 3 * heads * headDim;
  const row = 2 * (3 * hiddenSize + attention + intermediateSize) + 2 * 4 * headDim;
  return maxRows * row + attentionBytes(device, config, maxRows, cache);
}

/** Rows a sequence that decode, draft and verify passes have; a backend may take another path beyond, in prefill. */
const mostDecodeRows = 17;

/**
 * The most that attention needs: for a prefill of `maxRows` rows, and for every number of rows a sequence that decoding has; over the whole cache, and
 * with a prefix as long beside it, so that any policy's view is covered.
 */
function attentionBytes(
  device: Device,
  { heads }: ModelConfig,
  maxRows: number,
  { batch, maxPagesPerSequence: maxPages, pages, ...cache }: PagedKvOptions,
): number {
  const decodeRows = Array.from({ length: mostDecodeRows }, (_, i) => (i + 1) * batch);
  const rowCounts = [...decodeRows.filter((rows) => rows < maxRows), maxRows];
  const sizes = rowCounts.flatMap((rows) =>
    [false, true].map((prefix) => {
      const shape = { rows, heads, batch, maxPages, cache: { ...cache, pages }, prefix };
      return plannedAttentionWorkspaceBytes(device, shape);
    }),
  );
  return Math.max(...sizes);
}

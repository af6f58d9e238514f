import type { PagedKv } from "@magicdec/cache";
import { attentionWorkspaceBytes, type Device, type Tensor } from "@magicdec/tensor";
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
    this.attention = device.alloc([attentionBytes(device, attended, cache)], "u8");
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

/** Bytes of the activations of `maxRows` rows, the attention workspace apart. */
export function workspaceBytes(config: ModelConfig, maxRows: number): number {
  const { hiddenSize, intermediateSize, heads, kvHeads, headDim } = config;
  const attention = (heads + 2 * kvHeads) * headDim + 3 * heads * headDim;
  return maxRows * (2 * (3 * hiddenSize + attention + intermediateSize) + 2 * 4 * headDim);
}

/** The most that attention needs for this many rows: over the whole cache and a prefix as long, so any policy's view is covered. */
function attentionBytes(device: Device, attended: Tensor, cache: PagedKv): number {
  const { batch } = cache.options;
  using qStart = device.alloc([batch + 1], "i32");
  using lengths = device.alloc([batch], "i32");
  return attentionWorkspaceBytes({
    q: attended,
    out: attended,
    qStart,
    kvLen: lengths,
    blockTable: cache.blockTable,
    prefixCache: cache.ref,
    prefixTable: cache.blockTable,
    prefixLen: lengths,
    tailStart: lengths,
    cache: cache.ref,
    layer: 0,
    scale: 1,
  });
}

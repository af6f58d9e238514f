import type { Device, DeviceEvent } from "@magicdec/tensor";
import type { Resident } from "./resident.ts";

export interface PrefillOptions {
  readonly device: Device;
  /** Rows of a forward. */
  readonly chunk: number;
  readonly batch: number;
  /** Last prompt tokens whose queries are kept. */
  readonly window: number;
  readonly onProgress?: ((doneTokens: number) => void) | undefined;
  readonly signal?: AbortSignal | undefined;
}

/** Rows of one forward: pieces of one or more prompts, in order. */
interface Chunk {
  readonly ids: Int32Array;
  readonly positions: Int32Array;
  readonly rowSeq: Int32Array;
  readonly keepSeq: Int32Array;
  readonly qStart: Int32Array;
  readonly kvLen: Int32Array;
  /** Prompts that end in this chunk, first and past-the-last, and their last rows. */
  readonly finishedFrom: number;
  readonly finishedTo: number;
  readonly lastRows: Int32Array;
}

/**
 * Runs the prompts through the model in chunks of rows, whatever their lengths: row s of the batch takes prompt s. Logits are computed for last tokens only.
 * Resolves with the tokens done when everything has run; an aborted prefill leaves the rows half filled.
 */
export async function prefill(
  resident: Resident,
  prompts: readonly Int32Array[],
  options: PrefillOptions,
): Promise<number> {
  const { device, chunk: chunkRows, batch } = options;
  const { model, cache, workspace, queries } = resident;
  for (const [row, prompt] of prompts.entries()) cache.ensure(row, prompt.length);
  const i32 = (size: number) => device.alloc([size], "i32");
  const arrays = [
    i32(chunkRows),
    i32(chunkRows),
    i32(chunkRows),
    i32(chunkRows),
    i32(batch),
  ] as const;
  const [ids, positions, rowSeq, keepSeq, lastRows] = arrays;
  const qStart = i32(batch + 1);
  const kvLen = i32(batch);
  const events = [device.stream.event(), device.stream.event()] as const;
  let done = 0;
  let index = 0;
  let pending = 0;
  try {
    for (const chunk of cutIntoChunks(prompts, chunkRows, batch, options.window)) {
      if (options.signal?.aborted) break;
      const rows = chunk.ids.length;
      ids.write(chunk.ids);
      positions.write(chunk.positions);
      rowSeq.write(chunk.rowSeq);
      keepSeq.write(chunk.keepSeq);
      qStart.write(chunk.qStart);
      kvLen.write(chunk.kvLen);
      const finished = chunk.finishedTo - chunk.finishedFrom;
      if (finished > 0) lastRows.write(chunk.lastRows);
      model.forward(
        workspace,
        {
          rows,
          ids: ids.view([rows, 1]),
          idsStride: 1,
          positions: positions.rows(0, rows),
          rowSeq: rowSeq.rows(0, rows),
          qStart,
          kvLen,
          cache,
        },
        {
          keep: { ring: queries, rowSeq: keepSeq.rows(0, rows) },
          logitRows: finished > 0 ? lastRows.view([finished, 1]) : undefined,
          logits:
            finished > 0
              ? resident.promptLogits.rows(chunk.finishedFrom, chunk.finishedTo)
              : undefined,
        },
      );
      // The host prepares one chunk while the one before runs; progress follows what has run.
      (events[index % 2] as DeviceEvent).record();
      if (index > 0) {
        (events[(index + 1) % 2] as DeviceEvent).wait();
        done += pending;
        options.onProgress?.(done);
      }
      pending = rows;
      index++;
      await new Promise(setImmediate);
    }
    device.stream.sync();
    done += pending;
    options.onProgress?.(done);
    return done;
  } finally {
    device.stream.sync();
    for (const tensor of [...arrays, qStart, kvLen]) tensor.dispose();
    for (const event of events) event.dispose();
  }
}

/** Consecutive tokens of one prompt: [start, end). */
interface Piece {
  readonly sequence: number;
  readonly start: number;
  readonly end: number;
}

/**
 * Each prompt is cut at the same places whatever prompts are beside it, so that what its tokens leave in the cache does not depend on them, even where a
 * backend's prefill of other rows has other bits.
 */
function* cutIntoChunks(
  prompts: readonly Int32Array[],
  chunkRows: number,
  batch: number,
  window: number,
): Generator<Chunk> {
  let pieces: Piece[] = [];
  let rows = 0;
  for (const [sequence, prompt] of prompts.entries()) {
    for (let start = 0; start < prompt.length; start += chunkRows) {
      const end = Math.min(prompt.length, start + chunkRows);
      if (rows + end - start > chunkRows) {
        yield toChunk(prompts, pieces, batch, window);
        pieces = [];
        rows = 0;
      }
      pieces.push({ sequence, start, end });
      rows += end - start;
    }
  }
  if (rows > 0) yield toChunk(prompts, pieces, batch, window);
}

function toChunk(
  prompts: readonly Int32Array[],
  pieces: readonly Piece[],
  batch: number,
  window: number,
): Chunk {
  const ids: number[] = [];
  const positions: number[] = [];
  const rowSeq: number[] = [];
  const keepSeq: number[] = [];
  const qStart = new Int32Array(batch + 1);
  const kvLen = new Int32Array(batch);
  const lastRows: number[] = [];
  const finished: number[] = [];
  for (const { sequence, start, end } of pieces) {
    const prompt = prompts[sequence] as Int32Array;
    // Two rows of one launch must never share a slot of the query ring, hence only the window; and the token before it, since a draft's own cache is
    // selected from without its last token.
    const keepFrom = prompt.length - window - 1;
    for (let position = start; position < end; position++) {
      ids.push(prompt[position] as number);
      positions.push(position);
      rowSeq.push(sequence);
      keepSeq.push(position >= keepFrom ? sequence : -1);
    }
    qStart[sequence + 1] = end - start;
    kvLen[sequence] = end;
    if (end < prompt.length) continue;
    lastRows.push(ids.length - 1);
    finished.push(sequence);
  }
  for (let s = 0; s < batch; s++) qStart[s + 1] = (qStart[s] as number) + (qStart[s + 1] as number);
  return {
    ids: Int32Array.from(ids),
    positions: Int32Array.from(positions),
    rowSeq: Int32Array.from(rowSeq),
    keepSeq: Int32Array.from(keepSeq),
    qStart,
    kvLen,
    finishedFrom: finished[0] ?? 0,
    finishedTo: (finished.at(-1) ?? -1) + 1,
    lastRows: Int32Array.from(lastRows),
  };
}

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

/** Rows of one forward: consecutive prompt tokens, a chunk may end one prompt and begin the next. */
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

function* cutIntoChunks(
  prompts: readonly Int32Array[],
  chunkRows: number,
  batch: number,
  window: number,
): Generator<Chunk> {
  const total = prompts.reduce((sum, prompt) => sum + prompt.length, 0);
  let sequence = 0;
  let position = 0;
  for (let start = 0; start < total; start += chunkRows) {
    const rows = Math.min(chunkRows, total - start);
    const ids = new Int32Array(rows);
    const positions = new Int32Array(rows);
    const rowSeq = new Int32Array(rows);
    const keepSeq = new Int32Array(rows).fill(-1);
    const rowsOf = new Int32Array(batch);
    const kvLen = new Int32Array(batch);
    const lastRows: number[] = [];
    let finishedFrom = sequence;
    let finishedTo = sequence;
    for (let row = 0; row < rows; row++) {
      const prompt = prompts[sequence] as Int32Array;
      ids[row] = prompt[position] as number;
      positions[row] = position;
      rowSeq[row] = sequence;
      // Two rows of one launch must never share a slot of the query ring, hence only the window.
      if (position >= prompt.length - window) keepSeq[row] = sequence;
      rowsOf[sequence] = (rowsOf[sequence] as number) + 1;
      position++;
      kvLen[sequence] = position;
      if (position === prompt.length) {
        if (lastRows.length === 0) finishedFrom = sequence;
        lastRows.push(row);
        sequence++;
        finishedTo = sequence;
        position = 0;
      }
    }
    const qStart = new Int32Array(batch + 1);
    for (let s = 0; s < batch; s++) qStart[s + 1] = (qStart[s] as number) + (rowsOf[s] as number);
    yield {
      ids,
      positions,
      rowSeq,
      keepSeq,
      qStart,
      kvLen,
      finishedFrom,
      finishedTo,
      lastRows: Int32Array.from(lastRows),
    };
  }
}

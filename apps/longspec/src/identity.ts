import type { Mismatch } from "@magicdec/report";

/** Where two texts of a batch first differ, sequence by sequence; undefined for the same text. */
export function firstDifference(
  expected: readonly Int32Array[],
  actual: readonly Int32Array[],
): Pick<Mismatch, "sequence" | "position" | "expectedToken" | "actualToken"> | undefined {
  const sequences = Math.max(expected.length, actual.length);
  for (let sequence = 0; sequence < sequences; sequence++) {
    const left = expected[sequence] ?? new Int32Array();
    const right = actual[sequence] ?? new Int32Array();
    const length = Math.max(left.length, right.length);
    for (let position = 0; position < length; position++) {
      if (left[position] === right[position]) continue;
      const expectedToken = left[position] ?? null;
      return { sequence, position, expectedToken, actualToken: right[position] ?? null };
    }
  }
  return undefined;
}

/** The message of a mismatch: which run, where, and both tokens. */
export function mismatchMessage(mismatch: Mismatch): string {
  const token = (id: number | null, logit: number | null) =>
    (id === null ? "no token" : `token ${id}`) + (logit === null ? "" : ` (logit ${logit})`);
  return (
    `${mismatch.id}, ${mismatch.mode}, repetition ${mismatch.repetition}: expected the ` +
    `baseline's tokens, got another text from sequence ${mismatch.sequence}, new token ` +
    `${mismatch.position} on: ` +
    `baseline ${token(mismatch.expectedToken, mismatch.expectedLogit)}, here ${token(mismatch.actualToken, mismatch.actualLogit)}`
  );
}

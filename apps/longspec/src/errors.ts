/** Input that cannot be worked with; says what was expected, what came and what to do. */
export class UsageError extends Error {
  override readonly name = "UsageError";
}

/** How the process ends. */
export const exitCodes = { ok: 0, failed: 1, usage: 2, interrupted: 130 } as const;

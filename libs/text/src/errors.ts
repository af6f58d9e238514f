/** A tokenizer, a data set or a request for prompts is not usable; the message says why. */
export class TextError extends Error {
  override readonly name = "TextError";

  /** `subject`: the file or thing that is wrong; `remedy`: what the user can do about it. */
  constructor(subject: string, expected: string, came: string, remedy: string) {
    super(`${subject}: expected ${expected}, got ${came}; ${remedy}`);
  }
}

/** The text of whatever was thrown, or of a failed parse: its first line. */
export function reason(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.split("\n", 1)[0] ?? text;
}

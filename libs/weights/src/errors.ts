/** What is wrong with a model folder, in the parts that make one message. */
export interface CheckpointProblem {
  /** The file or folder the problem is in. */
  readonly file: string;
  readonly tensor?: string;
  readonly expected: string;
  readonly came: string;
  /** What the user can do about it. */
  readonly remedy: string;
}

/** A model folder or one of its files is not what it has to be; the message says all of it. */
export class CheckpointError extends Error {
  override readonly name = "CheckpointError";
  readonly file: string;
  readonly tensor: string | undefined;

  constructor({ file, tensor, expected, came, remedy }: CheckpointProblem, options?: ErrorOptions) {
    const where = tensor === undefined ? file : `${file}: tensor ${show(tensor)}`;
    super(`${where}: expected ${expected}, got ${came}; ${remedy}`, options);
    this.file = file;
    this.tensor = tensor;
  }
}

const longestShown = 80;

/** A value out of a file, as JSON and short enough for a message whatever the file holds. */
export function show(value: unknown): string {
  const text = JSON.stringify(typeof value === "string" ? cut(value) : value) ?? String(value);
  return cut(text);
}

/** The text of whatever was thrown. */
export function reason(error: unknown): string {
  return error instanceof Error ? cut(error.message) : String(error);
}

function cut(text: string): string {
  return text.length > longestShown ? `${text.slice(0, longestShown)}...` : text;
}

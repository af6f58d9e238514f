import type { Console } from "./progress.ts";

/** Where the program writes: results to stdout, progress and errors to stderr. */
export interface Terminal {
  /** The one object of `--json`. */
  result(json: string): void;
  /** Text for people: stdout, or stderr beside `--json`. */
  text(text: string): void;
  error(message: string): void;
  color: boolean;
  progress: Console;
}

/** The process's own streams. `json` keeps stdout for one object. */
export function processTerminal(json: boolean): Terminal {
  const people = json ? process.stderr : process.stdout;
  return {
    result: (text) => writeTo(process.stdout, `${text}\n`),
    text: (text) => writeTo(people, text),
    error: (message) => writeTo(process.stderr, `error: ${message}\n`),
    color: people.isTTY === true && process.env["NO_COLOR"] === undefined,
    progress: {
      write: (text) => writeTo(process.stderr, text),
      isTerminal: process.stderr.isTTY === true,
    },
  };
}

/** A reader that has gone (`| head`) is no reason to fail: the results are in their files. */
function writeTo(stream: NodeJS.WriteStream, text: string): void {
  try {
    stream.write(text);
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== "EPIPE") throw error;
  }
}

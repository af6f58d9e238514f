// What can go wrong at this boundary: a call that is refused, or a library that cannot be used.

import type { Status } from "./abi.gen.ts";

/** Why a call failed, as the library's Status names it. */
export type StatusName = Exclude<Status, "ok">;

/**
 * A call that the library, or a check in front of it, refused. `message` says what was expected and
 * what came.
 */
export class StatusError extends Error {
  override readonly name = "StatusError";

  readonly status: StatusName;
  /** The function that failed, such as "md_linear". */
  readonly op: string;

  constructor(status: StatusName, op: string, message: string) {
    super(message);
    this.status = status;
    this.op = op;
  }
}

/** The library could not be opened, or is not the one that this code was generated for. */
export class LibraryError extends Error {
  override readonly name = "LibraryError";
}

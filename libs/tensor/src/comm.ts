// The only door to other ranks. A model calls allReduce at its two places whatever the number of
// ranks is.

import type { Tensor } from "./tensor.ts";

export interface Communicator {
  /** How many ranks share the work. */
  readonly size: number;
  /** Which of them this is, from 0. */
  readonly rank: number;
  /** Enqueues replacing `tensor` on every rank by its sum over the ranks. */
  allReduce(tensor: Tensor): void;
}

/** One rank: every sum is already complete. */
export const singleRank: Communicator = {
  size: 1,
  rank: 0,
  allReduce(): void {},
};

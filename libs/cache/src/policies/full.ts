import type { CachePolicyFactory } from "../policy.ts";

/** The whole cache: what a small draft model reads where its KV is cheap. */
export const full: CachePolicyFactory = {
  name: "full",
  observesQueries: false,
  validate: () => undefined,
  bytes: () => 0,
  create: () => ({
    name: "full",
    sinkViewTokens: 0,
    selectEvery: Number.POSITIVE_INFINITY,
    view: () => ({}),
    select() {},
    moveRow() {},
    tokensRead: (length) => length,
    [Symbol.dispose]() {},
  }),
};

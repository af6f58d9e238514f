import type { CachePolicyFactory } from "../policy.ts";

/** The whole cache: what a small draft model reads where its KV is cheap. */
export const full: CachePolicyFactory = {
  name: "full",
  validate: () => undefined,
  bytes: () => 0,
  create: () => ({
    name: "full",
    sinkViewTokens: 0,
    selects: false,
    selectEvery: Number.POSITIVE_INFINITY,
    view: () => ({}),
    select() {},
    begin() {},
    moveRow() {},
    park() {},
    tokensRead: (length) => length,
    [Symbol.dispose]() {},
  }),
};

import type { CachePolicyFactory } from "../policy.ts";

/**
 * StreamingLLM (Xiao et al. 2309.17453): the first `sinks` tokens and a window of the latest. A view of the target's own exact pages, so it costs
 * no memory and no second prefill, and the window slides with every token. Keys keep their absolute rotation; only the query that meets the sinks is
 * rotated to its position inside the view, which leaves every distance as the method defines it.
 */
export const streaming: CachePolicyFactory = {
  name: "streaming",
  validate: ({ budget, sinks }) =>
    sinks >= 0 && sinks < budget
      ? undefined
      : `streaming cache: expected 0 <= sinks < budget, got sinks ${sinks} and budget ${budget}; ` +
        `lower --sinks or raise --draft-budget`,
  bytes: () => 0,
  create: ({ budget, sinks }) => {
    const view = { sinks, window: budget - sinks };
    return {
      name: "streaming",
      sinkViewTokens: budget,
      selects: false,
      selectEvery: Number.POSITIVE_INFINITY,
      view: () => view,
      select() {},
      begin() {},
      moveRow() {},
      park() {},
      tokensRead: (length) => Math.min(length, budget),
      [Symbol.dispose]() {},
    };
  },
};

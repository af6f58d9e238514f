export {
  OutOfPagesError,
  type PageHold,
  PagedKv,
  type PagedKvOptions,
  pagedKvBytes,
} from "./pages.ts";
export { QueryRing, queryRingBytes, type QueryRingOptions } from "./queries.ts";
export type {
  AttentionView,
  CachePolicy,
  CachePolicyFactory,
  PolicyContext,
  PolicyOptions,
} from "./policy.ts";
export { type CachePolicyName, cachePolicies } from "./policies/index.ts";

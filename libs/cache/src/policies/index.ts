import type { CachePolicyFactory } from "../policy.ts";
import { full } from "./full.ts";
import { snapkv } from "./snapkv.ts";
import { streaming } from "./streaming.ts";

/** Every policy by the name a user gives. A new policy is a new file and one entry here. */
export const cachePolicies = { full, streaming, snapkv } as const satisfies Record<
  string,
  CachePolicyFactory
>;

export type CachePolicyName = keyof typeof cachePolicies;

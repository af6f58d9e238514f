export * from "./attention.ts";
export * from "./dense.ts";
export * from "./sampling.ts";

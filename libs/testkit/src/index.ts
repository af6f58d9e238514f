// What tests share: backends to run on, random inputs, references in f64, closeness, paged caches
// with known contents.

export * from "./arrays.ts";
export { bestCpu, forEachBackend, forEachKind, type TestBackend } from "./backends.ts";
export { type Closeness, expectClose, expectSame, largestDifference, seedNote } from "./close.ts";
export { PagedCache, type PagedOptions, randomKv, tokensOf, unrotated } from "./paged.ts";
export { Random, testSeed } from "./random.ts";
export * as reference from "./reference/index.ts";
export { type TinyModelOptions, writeTinyModel } from "./tiny_model.ts";

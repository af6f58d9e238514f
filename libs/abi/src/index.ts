// The C ABI as TypeScript sees it. This is the only package that imports bun:ffi, and libs/tensor
// is the only one that imports this.

export * from "./abi.gen.ts";
export { LibraryError, StatusError, type StatusName } from "./error.ts";
export { Library, libraryPath, loadLibrary, openLibrary } from "./load.ts";
export { DescriptorRing, nativeBuffer } from "./ring.ts";

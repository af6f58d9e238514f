import type { DecodeStats, EngineOptions, FinishReason, SequenceRequest } from "./types.ts";

/** What the client sends to the engine's Worker. */
export type ToWorker =
  | { readonly type: "load"; readonly options: EngineOptions }
  | { readonly type: "generate"; readonly id: number; readonly request: SequenceRequest }
  | { readonly type: "abort"; readonly id: number }
  | { readonly type: "close" };

/** What comes back. Tokens and text come as they are accepted, several at a time. */
export type FromWorker =
  | { readonly type: "ready"; readonly info: EngineInfo }
  | { readonly type: "failed"; readonly error: WireError }
  | {
      readonly type: "tokens";
      readonly id: number;
      readonly tokens: readonly number[];
      readonly text: string;
    }
  | {
      readonly type: "end";
      readonly id: number;
      readonly finish: FinishReason;
      /** Text that was held back because a character was not complete. */
      readonly text: string;
      readonly stats: DecodeStats | undefined;
    }
  | { readonly type: "error"; readonly id: number; readonly error: WireError }
  | { readonly type: "closed" };

/** What a loaded engine says of itself. */
export interface EngineInfo {
  /** "cpu v4", "cuda:0 NVIDIA H200" */
  readonly device: string;
  readonly threads: number;
  readonly vocabSize: number;
  readonly maxTokens: number;
  readonly memoryBytes: number;
}

/** An error as it crosses threads. */
export interface WireError {
  readonly name: string;
  readonly message: string;
}

export function toWire(error: unknown): WireError {
  if (error instanceof Error) return { name: error.name, message: error.message };
  return { name: "Error", message: String(error) };
}

export function fromWire(wire: WireError): Error {
  const error = new Error(wire.message);
  error.name = wire.name;
  return error;
}

// Drawing tokens, and deciding which drafted tokens stand.

import {
  type AcceptRule,
  type NoiseStream,
  type SampleFields,
  structBytes,
  writeAcceptDesc,
  writeSampleDesc,
  writeSamplingParams,
} from "@magicdec/abi";
import type { Tensor } from "../tensor.ts";

/** How one sequence samples. */
export interface SamplingParams {
  /** 0 is greedy. */
  readonly temperature: number;
  /** 0 keeps all. */
  readonly topK: number;
  /** 1 keeps all. */
  readonly topP: number;
  /** 0 keeps all. */
  readonly minP: number;
  /**
   * A whole number from 0 to 2^53 - 1. It keys the noise, with `sequence` and the position of the
   * token.
   */
  readonly seed: number;
  readonly sequence: number;
}

/** The rows of a (b, 8) u32 params tensor. */
export function packSamplingParams(params: readonly SamplingParams[]): Uint32Array {
  const words = new Uint32Array((params.length * structBytes.SamplingParams) / 4);
  const views = { u32: words, f32: new Float32Array(words.buffer) };
  for (const [i, { seed, ...fields }] of params.entries()) {
    writeSamplingParams(views, i * structBytes.SamplingParams, {
      ...fields,
      seedLow: seed >>> 0,
      seedHigh: Math.floor(seed / 2 ** 32),
    });
  }
  return words;
}

export interface SampleOp {
  /** (b * r, v) f32 */
  readonly logits: Tensor;
  /** (b, 8) u32 from packSamplingParams; row i of the logits belongs to sequence i / r */
  readonly params: Tensor;
  /** (b * r) i32: position of each row's input token; the drawn token stands at this + 1 */
  readonly positions: Tensor;
  /** (b, r) i32; element (i, j) is written at i * outStride + j */
  readonly out: Tensor;
  /**
   * (b, r, v) f32: the distribution that was drawn from, element (i, j) at (i * probsStride + j) *
   * v
   */
  readonly probs?: Tensor | undefined;
  /** r by default */
  readonly outStride?: number | undefined;
  /** r by default */
  readonly probsStride?: number | undefined;
  /** "target" by default */
  readonly stream?: NoiseStream | undefined;
}

/**
 * Draws a token from each row: argmax(logits / temperature + Gumbel noise) over what top-k, top-p
 * and min-p leave.
 */
export function sample(op: SampleOp): void {
  const { device } = op.out;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  writeSampleDesc(ring, slot, isFullSample(op) ? op : withDefaults(op));
  device.check("md_sample", symbols.md_sample(context, ring.address + slot));
}

function isFullSample(op: SampleOp): op is SampleOp & SampleFields {
  const { outStride, probsStride, stream } = op;
  return outStride !== undefined && probsStride !== undefined && stream !== undefined;
}

function withDefaults(op: SampleOp): SampleFields {
  const rows = op.out.shape[1] ?? 1;
  const { outStride = rows, probsStride = rows, stream = "target" } = op;
  return { ...op, outStride, probsStride, stream };
}

export interface AcceptOp {
  /** (b, g + 2) i32, in and out: previous token, current token, then g drafted ones */
  readonly chain: Tensor;
  /**
   * match: (b, g + 1) i32, the target's choice after each token of the chain from the current one
   * on
   */
  readonly targetTokens?: Tensor | undefined;
  /** rejection: (b * (g + 1), v) f32 */
  readonly targetLogits?: Tensor | undefined;
  /** rejection: (b, g, v) f32 from sample's probs */
  readonly draftProbs?: Tensor | undefined;
  /** (b, 8) u32 from packSamplingParams */
  readonly params: Tensor;
  /** (b) i32; 0 leaves the sequence alone, with count 0 */
  readonly active: Tensor;
  /** (b) i32, in and out */
  readonly lens: Tensor;
  /** (b) i32: emitted tokens, 1 .. g + 1 */
  readonly count: Tensor;
  /** (b, g + 1) i32: the emitted tokens, then -1 */
  readonly out: Tensor;
  /**
   * "match" keeps drafts that equal the target's choice; "rejection" is Leviathan et al. 2211.17192
   * / Chen et al. 2302.01318.
   */
  readonly rule: AcceptRule;
}

/** Decides how many drafted tokens stand and moves each sequence on, on the device. */
export function accept(op: AcceptOp): void {
  const { device } = op.out;
  const { ring, symbols, context } = device;
  const slot = ring.take();
  writeAcceptDesc(ring, slot, op);
  device.check("md_accept", symbols.md_accept(context, ring.address + slot));
}

export { BatchState, RowLayout, type SequenceSampling } from "./batch.ts";
export { ChainDraft, type ChainDraftOptions, type Draft } from "./draft.ts";
export {
  type GraphSizes,
  Iteration,
  type IterationOptions,
  type IterationRecord,
  RecordBuffers,
} from "./iteration.ts";
export {
  acceptanceLength,
  acceptanceRateFromLength,
  bestGamma,
  predictedSpeedup,
  type StepTimes,
  verifyTimeLine,
} from "./theory.ts";
export { type AcceptRule, Verifier, type VerifierOptions } from "./verify.ts";

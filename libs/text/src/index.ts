export { loadDataset, type Dataset } from "./dataset.ts";
export { Detokenizer } from "./detokenizer.ts";
export { TextError } from "./errors.ts";
export { makePrompts, type PromptRequest, type Prompts } from "./prompts.ts";
export { Tokenizer, type DecodeOptions } from "./tokenizer.ts";
export {
  requireSameVocabulary,
  requireVocabulary,
  sameVocabulary,
  vocabularyDifference,
  type VocabularyDifference,
} from "./vocabulary.ts";

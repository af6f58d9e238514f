import { fileURLToPath } from "node:url";

/**
 * The model pair that travels with the repository, so that the benchmarks run with nothing to
 * download. Both are folders in the Hugging Face layout (config.json, model.safetensors,
 * tokenizer.json) and share one tokenizer. README.md beside this package is their model card.
 */

/** Absolute path of the target: 8 layers, hidden 256, 16K of context, 15.75 MB. */
export const embeddedTarget: string = fileURLToPath(new URL("../target", import.meta.url));

/** Absolute path of the draft distilled from it: 4 layers, hidden 128, 16K of context, 2.76 MB. */
export const embeddedDraft: string = fileURLToPath(new URL("../draft", import.meta.url));

import { type DecoderStep, unknownDecoder } from "./tokenizer_files.ts";

/**
 * Tokens back to text, at the level of bytes. A token may hold part of a character, so text can
 * only be given out where a character ends; working on bytes makes that exact and costs the same
 * for each token, where decoding a growing list of tokens again and again does neither.
 */

/** How the tokens of one vocabulary are spelt. */
export interface Spelling {
  /** The UTF-8 bytes that a token stands for. `added`: it is outside of the trained vocabulary. */
  bytes(token: string, added: boolean): Uint8Array;
  /** Spaces that a text's first token carries and the text does not have. */
  readonly leadingSpaces: number;
}

const encoder = new TextEncoder();

/** The spelling that tokenizer.json's decoder describes. Throws TextError where it is unknown. */
export function spellingOf(path: string, steps: readonly DecoderStep[]): Spelling {
  const kinds = steps.map(({ type }) => type);
  if (kinds.includes("ByteLevel")) {
    if (kinds.length === 1) return byteLevelSpelling;
    throw unknownDecoder(path, `the steps ${kinds.join(", ")}`);
  }
  return pieceSpelling(path, steps);
}

/** GPT-2's spelling, also of Llama 3 and Qwen: each byte is one printable character. */
const byteLevelSpelling: Spelling = {
  bytes(token, added) {
    return added ? encoder.encode(token) : Uint8Array.from(token, (char) => byteOf(char));
  },
  leadingSpaces: 0,
};

const byteByCharacter = new Map<string, number>();

/** Bytes that print stand for themselves; the others are numbered from 256 on. */
function byteOf(char: string): number {
  if (byteByCharacter.size === 0) {
    let next = 256;
    for (let byte = 0; byte < 256; byte++) {
      const prints =
        (byte > 32 && byte < 127) || (byte > 160 && byte < 173) || (byte > 173 && byte < 256);
      byteByCharacter.set(String.fromCodePoint(prints ? byte : next++), byte);
    }
  }
  return byteByCharacter.get(char) ?? 0x3f;
}

/** SentencePiece's spelling, of Llama 2, Mistral and Gemma: a mark for a space, `<0x0A>` a byte. */
function pieceSpelling(path: string, steps: readonly DecoderStep[]): Spelling {
  const marks: [mark: string, text: string][] = [];
  let byteFallback = false;
  let leadingSpaces = 0;
  for (const step of steps) {
    if (step.type === "Replace") marks.push([step.pattern.String, step.content]);
    else if (step.type === "ByteFallback") byteFallback = true;
    else if (step.type === "Strip" && step.content === " ") leadingSpaces = step.start;
    else if (step.type === "Metaspace") {
      marks.push([step.replacement, " "]);
      leadingSpaces = step.prepend_scheme === "never" ? 0 : 1;
    } else if (step.type !== "Fuse") {
      throw unknownDecoder(path, `a step ${JSON.stringify(step)}`);
    }
  }
  return {
    bytes(token) {
      const byte = byteFallback ? /^<0x([0-9A-F]{2})>$/.exec(token)?.[1] : undefined;
      if (byte !== undefined) return Uint8Array.of(Number.parseInt(byte, 16));
      return encoder.encode(marks.reduce((text, [mark, to]) => text.replaceAll(mark, to), token));
    },
    leadingSpaces,
  };
}

/**
 * Turns a stream of tokens into text as they come. What `push` returns ends at a character's end:
 * the bytes of an unfinished character wait for the next token. Joined, the pieces are the text of
 * all tokens at once; bytes that are not UTF-8 become U+FFFD.
 */
export class Detokenizer {
  readonly #bytesOf: (id: number) => Uint8Array;
  // Reads BOM as the character it is, as a tokenizer does.
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  #spacesToDrop: number;

  /** `leadingSpaces`: how many spaces to drop at the start, if they are there. */
  constructor(bytesOf: (id: number) => Uint8Array, leadingSpaces: number) {
    this.#bytesOf = bytesOf;
    this.#spacesToDrop = leadingSpaces;
  }

  push(ids: Iterable<number>): string {
    let text = "";
    for (const id of ids) {
      const bytes = this.#dropSpaces(this.#bytesOf(id));
      if (bytes.length > 0) text += this.#decoder.decode(bytes, { stream: true });
    }
    return text;
  }

  /** The rest: U+FFFD where the last character was never finished. The stream is over. */
  end(): string {
    return this.#decoder.decode();
  }

  #dropSpaces(bytes: Uint8Array): Uint8Array {
    let start = 0;
    while (this.#spacesToDrop > 0 && start < bytes.length) {
      this.#spacesToDrop = bytes[start] === 0x20 ? this.#spacesToDrop - 1 : 0;
      if (bytes[start] === 0x20) start++;
    }
    return bytes.subarray(start);
  }
}

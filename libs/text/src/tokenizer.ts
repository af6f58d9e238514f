import { BPE, Tokenizer as LibraryTokenizer } from "@huggingface/tokenizers";
import { Detokenizer, type Spelling, spellingOf } from "./detokenizer.ts";
import { reason, TextError } from "./errors.ts";
import { readTokenizerFiles, type TokenizerFiles } from "./tokenizer_files.ts";

export interface DecodeOptions {
  /** Leaves special tokens (BOS, EOS, turns of a chat) out of the text. Default true. */
  skipSpecial?: boolean;
  /** The tokens go on from others: keep the space that a text's first token would lose. */
  midText?: boolean;
}

/**
 * A model folder's tokenizer: the ids are those of Hugging Face's `tokenizers`, as its
 * tokenizer.json says. Special tokens written out in a text count as special tokens.
 */
export class Tokenizer {
  /** Of tokenizer.json. */
  readonly path: string;
  /** The largest id + 1. */
  readonly vocabSize: number;
  /** What the tokenizer puts before a text; null where it puts nothing. */
  readonly bosId: number | null;
  /** Tokens that end a text, as the model's folder says. */
  readonly eosIds: readonly number[];
  readonly #library: LibraryTokenizer;
  readonly #spelling: Spelling;
  readonly #added = new Set<number>();
  readonly #special = new Set<number>();
  readonly #bytes: (Uint8Array | undefined)[] = [];

  /** `model`: a folder with tokenizer.json. Throws TextError. */
  static async load(model: string): Promise<Tokenizer> {
    return new Tokenizer(await readTokenizerFiles(model));
  }

  private constructor({ path, tokenizer, decoderSteps, config, eosIds }: TokenizerFiles) {
    this.path = path;
    this.#spelling = spellingOf(path, decoderSteps);
    try {
      // Decoding is done here, so the library needs no decoder.
      this.#library = new LibraryTokenizer({ ...tokenizer, decoder: null }, config);
      this.bosId = leadingToken(this.#library, config);
    } catch (error) {
      throw new TextError(
        path,
        "a tokenizer that @huggingface/tokenizers can run",
        `an error from it (${reason(error)})`,
        "use a model of the Llama, Mistral or Qwen kind",
      );
    }
    const { model } = this.#library;
    if (model instanceof BPE) rememberWords(model);
    this.vocabSize = model?.vocab.length ?? 0;
    for (const { id, special } of tokenizer.added_tokens) {
      this.#added.add(id);
      if (special) this.#special.add(id);
    }
    const eos = idOf(this.#library, config.eos_token);
    this.eosIds = eosIds.length > 0 || eos === null ? eosIds : [eos];
  }

  /** `addBos`: BOS first, where the tokenizer has one. Default false. */
  encode(text: string, { addBos = false }: { addBos?: boolean } = {}): Int32Array {
    const { ids } = this.#library.encode(text, { add_special_tokens: false });
    return Int32Array.from(addBos && this.bosId !== null ? [this.bosId, ...ids] : ids);
  }

  /** Text exactly as the tokens spell it. Ids that the vocabulary lacks stand for nothing. */
  decode(ids: Iterable<number>, options: DecodeOptions = {}): string {
    const detokenizer = this.detokenizer(options);
    return detokenizer.push(ids) + detokenizer.end();
  }

  /** Decodes tokens as they are generated. */
  detokenizer({ skipSpecial = true, midText = false }: DecodeOptions = {}): Detokenizer {
    const skipped = new Uint8Array(0);
    const bytesOf = (id: number) =>
      skipSpecial && this.#special.has(id) ? skipped : this.#bytesOf(id);
    return new Detokenizer(bytesOf, midText ? 0 : this.#spelling.leadingSpaces);
  }

  /** The token as the vocabulary spells it. */
  token(id: number): string | undefined {
    return this.#library.id_to_token(id);
  }

  #bytesOf(id: number): Uint8Array {
    const known = this.#bytes[id];
    if (known !== undefined) return known;
    const token = this.token(id);
    if (token === undefined) return new Uint8Array(0);
    const bytes = this.#spelling.bytes(token, this.#added.has(id));
    this.#bytes[id] = bytes;
    return bytes;
  }
}

/** What the tokenizer's post-processor puts first, or its BOS where it is told to add one. */
function leadingToken(library: LibraryTokenizer, config: TokenizerFiles["config"]): number | null {
  if (config.add_bos_token === false) return null;
  const bare = library.encode("a", { add_special_tokens: false }).ids;
  const [first, ...rest] = library.encode("a").ids;
  if (first !== undefined && rest.length >= bare.length && first !== bare[0]) return first;
  return config.add_bos_token === true ? idOf(library, config.bos_token) : null;
}

type TokenName = TokenizerFiles["config"]["bos_token"];

function idOf(library: LibraryTokenizer, name: TokenName): number | null {
  const content = typeof name === "string" ? name : name?.content;
  return content === undefined ? null : (library.token_to_id(content) ?? null);
}

/** Words kept: a long novel has 20,000 different ones. */
const maxWords = 2 ** 18;

/**
 * Merges each word once. The library keeps 10,000 words only, fewer than a novel has, and each
 * one beyond them costs a merge again: 3 x the time for Moby-Dick.
 */
function rememberWords(model: BPE): void {
  const merge = model.bpe.bind(model);
  const words = new Map<string, string[]>();
  model.bpe = (word) => {
    const known = words.get(word);
    if (known !== undefined) return known;
    if (words.size >= maxWords) words.clear();
    const tokens = merge(word);
    words.set(word, tokens);
    return tokens;
  };
}

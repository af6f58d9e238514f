import { CheckpointError, reason, show } from "./errors.ts";

/**
 * Parses bytes that have to hold one JSON object in which no name stands twice: readers differ on
 * which of two equal names counts, so a file with both could mean two things.
 * `where` names the part in messages ("the header").
 */
export function parseJsonObject(
  file: string,
  where: string,
  bytes: Uint8Array,
  remedy: string,
): Record<string, unknown> {
  const fail = (expected: string, came: string): never => {
    throw new CheckpointError({ file, expected, came, remedy });
  };
  let text: string;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    return fail(`${where} to be UTF-8`, "other bytes");
  }
  let value: unknown;
  try {
    value = JSON.parse(text);
  } catch (error) {
    return fail(`${where} to be JSON`, `text that does not parse (${reason(error)})`);
  }
  if (!isObject(value)) return fail(`${where} to be a JSON object`, jsonType(value));
  const repeated = findRepeatedName(text);
  if (repeated !== undefined) {
    return fail(`each name in ${where} once`, `${repeated} twice in one object`);
  }
  return value;
}

export function isObject(value: unknown): value is Record<string, unknown> {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

/** "an array", "a number": what JSON calls the value's type. */
export function jsonType(value: unknown): string {
  if (value === null) return "null";
  if (Array.isArray(value)) return "an array";
  return typeof value === "object" ? "an object" : `a ${typeof value}`;
}

/** The first name that one object holds twice. */
function findRepeatedName(text: string): string | undefined {
  // The text is known to be valid JSON, so strings and brackets are all that need telling apart.
  const open: (Set<unknown> | undefined)[] = [];
  for (let i = 0; i < text.length; i++) {
    const mark = text[i];
    if (mark === "{") open.push(new Set());
    else if (mark === "[") open.push(undefined);
    else if (mark === "}" || mark === "]") open.pop();
    else if (mark === '"') {
      const end = stringEnd(text, i);
      const piece = text.slice(i, end);
      i = end - 1;
      if (!isName(text, end)) continue;
      // Equal names may be spelt with different escapes.
      const name: unknown = JSON.parse(piece);
      const names = open.at(-1);
      if (names?.has(name)) return show(name);
      names?.add(name);
    }
  }
  return undefined;
}

/** One past the closing quote of the string that opens at `start`. */
function stringEnd(text: string, start: number): number {
  let i = start + 1;
  while (text[i] !== '"') i += text[i] === "\\" ? 2 : 1;
  return i + 1;
}

/** Whether a colon follows, so that the string before `end` is a name and not a value. */
function isName(text: string, end: number): boolean {
  let i = end;
  while (text[i] === " " || text[i] === "\n" || text[i] === "\r" || text[i] === "\t") i++;
  return text[i] === ":";
}

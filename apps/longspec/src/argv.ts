import { UsageError } from "./errors.ts";
import {
  type Command,
  commands,
  type Flag,
  type FlagKey,
  type FlagValues,
  flags,
  flagsOf,
} from "./flags.ts";
import { nearest } from "./nearest.ts";

/** A command line taken apart: which command, the flags given, and whether help was asked for. */
export interface ParsedArgv {
  command: Command;
  values: FlagValues;
  help: boolean;
}

/**
 * Takes a command line apart. The argument parser of the help (cac) turns "007" into 7 and knows
 * neither lists (`--rank_group 0 1 2 3`) nor underscores, so the values are read here: a list takes
 * the words up to the next flag and splits them at commas, a boolean may be followed by true or
 * false, `--no-NAME` is false.
 *
 * @throws UsageError for an unknown command or flag, a missing, malformed or contradictory value
 */
export function parseArgv(argv: readonly string[]): ParsedArgv {
  const words = [...argv];
  const command = takeCommand(words);
  const given = new Map<FlagKey, { flag: Flag; spelled: string; value: string[] }>();
  let help = false;
  while (words.length > 0) {
    const word = words.shift() ?? "";
    if (word === "--help" || word === "-h") {
      help = true;
      continue;
    }
    const { key, flag, spelled, inline } = recognise(word, command);
    const value = inline ?? takeValue(flag, spelled, words);
    const before = given.get(key);
    if (before !== undefined && before.value.join() !== value.join()) {
      throw new UsageError(
        `${spelled}: expected it once, got ${before.value.join(",")} and ${value.join(",")}; ` +
          "leave one of them out",
      );
    }
    given.set(key, { flag, spelled, value });
  }
  const values: Record<string, unknown> = {};
  for (const [key, { flag, spelled, value }] of given) values[key] = checked(flag, spelled, value);
  return { command, values: values as FlagValues, help };
}

function takeCommand(words: string[]): Command {
  const first = words[0];
  if (first === undefined || first.startsWith("-")) return commands[0];
  words.shift();
  const command = commands.find((name) => name === first);
  if (command !== undefined) return command;
  throw new UsageError(
    `command: expected one of ${commands.join(", ")}, got ${JSON.stringify(first)}` +
      suggestion(first, commands),
  );
}

interface Recognised {
  key: FlagKey;
  flag: Flag;
  spelled: string;
  inline: string[] | undefined;
}

function recognise(word: string, command: Command): Recognised {
  const match = /^--?([A-Za-z][\w-]*)(?:=(.*))?$/s.exec(word);
  if (match === null) {
    throw new UsageError(
      `argument: expected a flag (--name value), got ${JSON.stringify(word)}; see --help`,
    );
  }
  const [, name = "", inline] = match;
  const known = new Map(
    flagsOf(command).flatMap(([key, flag]) =>
      [flag.name, ...(flag.aliases ?? [])].map((spelling) => [spelling, { key, flag }] as const),
    ),
  );
  const dashed = name.replaceAll("_", "-");
  const found = known.get(dashed);
  if (found !== undefined) {
    const value = inline === undefined ? undefined : splitValue(found.flag, [inline]);
    return { ...found, spelled: `--${name}`, inline: value };
  }
  const positive = known.get(dashed.replace(/^no-/, ""));
  if (positive?.flag.kind === "boolean" && inline === undefined) {
    return { ...positive, spelled: `--${name}`, inline: ["false"] };
  }
  throw unknownFlag(name, command, [...known.keys()]);
}

function unknownFlag(name: string, command: Command, known: string[]): UsageError {
  const dashed = name.replaceAll("_", "-");
  const elsewhere = Object.values<Flag>(flags).find((flag) => flag.name === dashed);
  if (elsewhere?.only !== undefined) {
    return new UsageError(
      `--${name}: ${command} does not take this flag (${elsewhere.only.join(", ")} do); ` +
        "leave it out",
    );
  }
  return new UsageError(
    `--${name}: expected a flag of ${command}, got an unknown one` +
      suggestion(dashed, known, "--"),
  );
}

function suggestion(word: string, known: readonly string[], prefix = ""): string {
  const close = nearest(word, known);
  return close === undefined ? "; see --help" : `; did you mean ${prefix}${close}?`;
}

/** Removes the value of `flag` from the front of `words`. */
function takeValue(flag: Flag, spelled: string, words: string[]): string[] {
  if (flag.kind === "boolean") {
    const next = words[0]?.toLowerCase();
    if (next !== "true" && next !== "false") return ["true"];
    words.shift();
    return [next];
  }
  const end = words.findIndex(isFlagWord);
  const available = end === -1 ? words.length : end;
  if (available === 0) {
    throw new UsageError(
      `${spelled}: expected ${flag.expected}, got nothing; write ${spelled} ${flag.metavar}`,
    );
  }
  return splitValue(flag, words.splice(0, flag.kind === "list" ? available : 1));
}

function splitValue(flag: Flag, words: string[]): string[] {
  if (flag.kind !== "list") return words;
  return words.flatMap((word) => word.split(",")).filter((word) => word !== "");
}

/** "-1" is a value; "--gamma" and "-h" are flags. */
function isFlagWord(word: string): boolean {
  return /^--?[A-Za-z]/.test(word);
}

function checked(flag: Flag, spelled: string, value: string[]): unknown {
  const parsed = flag.schema.safeParse(flag.kind === "list" ? value : value[0]);
  if (parsed.success) return parsed.data;
  throw new UsageError(
    `${spelled}: expected ${flag.expected}, got ${JSON.stringify(value.join(","))}; ` +
      (flag.standard === undefined ? "see --help" : `leave it out for ${flag.standard}`),
  );
}

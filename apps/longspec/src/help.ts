import cac from "cac";
import { type Command, commands, flagsOf } from "./flags.ts";

const purposes: Record<Command, string> = {
  longspec: "all methods side by side over one prefill (default)",
  baseline: "plain decoding only",
  selfspec: "the target drafts for itself over a sparse cache",
  sweep: "a grid over batch, prefix, gamma, budget and method, with a heat map",
  plan: "memory and expected speed-up, without running the model",
};

const examples: Record<Command, string> = {
  longspec: "longspec --B 4 --prefix-len 1000,8000,3000,500",
  baseline: "baseline --B 1 --prefix_len 4000 --gen_len 64 --printoutput",
  selfspec: "selfspec --gamma 4 --streamingllm_budget 256",
  sweep: "sweep --B 1,4,8 --prefix-len 1000,4000,8000 --gamma 2,4,6",
  plan: "plan --B 16 --prefix-len 16000",
};

/** Prints the help of `command`; that of the default command lists the others too. */
export function printHelp(command: Command): void {
  const cli = cac("bun apps/longspec/src/main.ts");
  const shown = command === commands[0] ? commands : [command];
  for (const name of shown) {
    const entry = cli.command(name, purposes[name]).usage(`${name} [flags]`);
    entry.example(`  bun apps/longspec/src/main.ts ${examples[name]}`);
    for (const [, flag] of flagsOf(name)) {
      const spelling = [flag.name, ...(flag.aliases ?? [])].map((one) => `--${one}`).join(", ");
      const value = flag.kind === "boolean" ? "" : ` <${flag.metavar}>`;
      const standard = flag.standard === undefined ? "" : ` [${flag.standard}]`;
      entry.option(`${spelling}${value}`, `${flag.help}${standard}`);
    }
  }
  cli.help((sections) => [
    ...sections.filter((section) => !section.title?.startsWith("For more info")),
    ...(command === commands[0] ? [{ title: "Commands", body: commandList() }] : []),
    {
      title: "Spelling",
      body:
        "  Every flag may be written with - or _. Lists are written 1,2,3 or 1 2 3.\n" +
        "  Values in [brackets] are the defaults. --no-NAME turns a flag off.",
    },
  ]);
  cli.parse(["bun", "longspec", command, "--help"]);
}

function commandList(): string {
  const width = Math.max(...commands.map((name) => name.length)) + 2;
  return commands.map((name) => `  ${name.padEnd(width)}${purposes[name]}`).join("\n");
}

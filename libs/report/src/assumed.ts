import { type AssumedSpeedup, methodLabel, modeLabel } from "./schema.ts";

/** What the table says, for the line above it. */
export const assumedCaption =
  "Speed-up that the equation gives for this run's T_T, T_D, T_V and the rest of an iteration, were " +
  "drafts accepted at the rate alpha: at the measured gamma, and at the best one. T_V of a gamma that " +
  "was not measured lies on the line through T_T and the measured T_V.";

/** Headings and cells of the table of assumed acceptance. */
export function assumedTable(
  assumed: readonly AssumedSpeedup[],
  temperature: number,
): { headings: string[]; rows: string[][] } {
  const alphas = assumed[0]?.byAlpha.map(({ alpha }) => `alpha ${alpha}`) ?? [];
  return {
    headings: ["mode", "method", "gamma", "iteration\nms", ...alphas],
    rows: assumed.map((one) => [
      modeLabel(one.mode, temperature),
      methodLabel(one),
      String(one.gamma),
      one.msIteration.toFixed(2),
      ...one.byAlpha.map(
        ({ speedup, bestGamma, bestSpeedup }) =>
          `${speedup.toFixed(2)} (${bestGamma}: ${bestSpeedup.toFixed(2)})`,
      ),
    ]),
  };
}

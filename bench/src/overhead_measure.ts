import { Bench } from "tinybench";

/** One row: `run` makes `calls` calls; `before` and `after` stand outside the clock. */
export interface CallCase {
  readonly name: string;
  readonly calls: number;
  readonly run: () => void;
  readonly before?: () => void;
  readonly after?: () => void;
}

/** Cost of one call, microseconds. A sample is the mean of the calls of one `run`. */
export interface CallCost {
  readonly name: string;
  readonly medianUs: number;
  readonly meanUs: number;
  readonly p99Us: number;
  readonly samples: number;
}

/** Runs each case for `ms` milliseconds, after a warm-up of a fifth of that. */
export async function measureCalls(
  cases: readonly CallCase[],
  ms: number,
): Promise<readonly CallCost[]> {
  const bench = new Bench({ time: ms, warmupTime: ms / 5, warmup: true, throws: true });
  for (const { name, run, before, after } of cases) {
    bench.add(name, run, {
      async: false,
      ...(before === undefined ? {} : { beforeEach: before }),
      ...(after === undefined ? {} : { afterEach: after }),
    });
  }
  await bench.run();
  return cases.map(({ name, calls }) => {
    const result = bench.getTask(name)?.result;
    if (result?.state !== "completed") {
      throw new Error(`${name}: expected a completed measurement, got ${result?.state}`);
    }
    const { p50, mean, p99, samplesCount } = result.latency;
    const us = (milliseconds: number) => (milliseconds * 1000) / calls;
    return { name, medianUs: us(p50), meanUs: us(mean), p99Us: us(p99), samples: samplesCount };
  });
}

import { formatBytes, type Runner } from "@magicdec/engine";

/** One line on what computes, with the reason where the CPU does because no GPU can be used. */
export function deviceLine({ label, info, withoutGpu }: Runner["device"]): string {
  if (info.computeCapability > 0) {
    const capability = (info.computeCapability / 10).toFixed(1);
    return (
      `device: ${label}, compute capability ${capability}, ${info.multiprocessors} ` +
      `multiprocessors, ${formatBytes(info.availableMemoryBytes)} free of ` +
      `${formatBytes(info.totalMemoryBytes)}`
    );
  }
  const reason = withoutGpu === undefined ? "" : ` (no GPU: ${withoutGpu})`;
  return `device: ${label}, ${info.threads} threads${reason}`;
}

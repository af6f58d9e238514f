/** Cleans up after something failed. A lost GPU refuses that too, and what failed first is what the caller has to hear. */
export function afterFailure(cleanUp: () => void): void {
  try {
    cleanUp();
  } catch {
    // The context is gone, and everything in it: closing the device frees what is left here.
  }
}

/**
 * The known word that a misspelt one most likely means: the one fewest edits away, and no further
 * than a third of its length.
 */
export function nearest(word: string, known: readonly string[]): string | undefined {
  const allowed = Math.max(1, Math.floor(word.length / 3));
  let best: { text: string; edits: number } | undefined;
  for (const text of known) {
    const edits = editDistance(word.toLowerCase(), text.toLowerCase());
    if (edits <= allowed && edits < (best?.edits ?? Infinity)) best = { text, edits };
  }
  return best?.text;
}

/** Levenshtein distance: insertions, deletions and replacements of one character. */
export function editDistance(a: string, b: string): number {
  let previous = Array.from({ length: b.length + 1 }, (_, column) => column);
  for (let row = 1; row <= a.length; row++) {
    const current = [row];
    for (let column = 1; column <= b.length; column++) {
      const replace = (previous[column - 1] ?? 0) + (a[row - 1] === b[column - 1] ? 0 : 1);
      const remove = (previous[column] ?? 0) + 1;
      const insert = (current[column - 1] ?? 0) + 1;
      current.push(Math.min(replace, remove, insert));
    }
    previous = current;
  }
  return previous[b.length] ?? 0;
}

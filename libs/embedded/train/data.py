"""From the novels to training batches.

A training sequence is BOS and then text cut inside one novel. Two things are done to a share of the
sequences so that what lies thousands of tokens back is worth reading:

- Renaming: a novel's own names (Dombey, Weatherbury) are exchanged, the same way throughout the
  sequence, for names out of other novels. Who is who can then be known from the context alone, not
  from having read the novel before. The renamed copies are made once, as text, and tokenised.
- Returns: a passage comes back, word for word, hundreds to many thousands of tokens later, after a
  paragraph break. Half of the returns stand under a heading in square brackets, "[Weatherbury 47]",
  that also stood above the passage the first time: there the heading says which passage is to come.
"""

import os
import random
import re
import tarfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS = "<|bos|>"
VOCAB = 4096
HELD_OUT = ("ENG18551_Trollope", "ENG18860_Hardy", "ENG18900_Doyle", "ENG19100_Forster")


def read_novels(path: str) -> dict[str, str]:
    """{file name without .txt: text} from a folder of .txt files or a tar archive of one."""
    if os.path.isdir(path):
        names = sorted(name for name in os.listdir(path) if name.endswith(".txt"))
        texts = {}
        for name in names:
            with open(os.path.join(path, name), encoding="utf-8") as file:
                texts[name.removesuffix(".txt")] = file.read()
        return texts
    texts = {}
    with tarfile.open(path) as archive:
        for member in archive:
            name = os.path.basename(member.name)
            if name.endswith(".txt"):
                texts[name.removesuffix(".txt")] = (
                    archive.extractfile(member).read().decode("utf-8")
                )
    return dict(sorted(texts.items()))


def split_novels(texts: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """(training, held out): the four of HELD_OUT are never trained on."""
    missing = [name for name in HELD_OUT if name not in texts]
    if missing:
        raise ValueError(f"expected the novels {HELD_OUT}; missing: {missing}")
    held_out = {name: texts[name] for name in HELD_OUT}
    return {name: text for name, text in texts.items() if name not in held_out}, held_out


# --- tokenizer --------------------------------------------------------------------------------


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE of 4,096 entries; id 0 is BOS, which the post-processor puts in front."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=[AddedToken(BOS, special=True, normalized=False)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    bos = tokenizer.token_to_id(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos)]
    )
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Ids without BOS, one uint16 array a text."""
    encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(e.ids, dtype=np.uint16) for e in encodings]


# --- renaming ---------------------------------------------------------------------------------

_INSIDE_SENTENCE = re.compile(r"(?<=[a-z,;] )[A-Z][a-z]{2,}\b")
_CAPITALISED = re.compile(r"\b[A-Z][a-z]{2,}\b")
_LOWER = re.compile(r"\b[a-z]{3,}\b")


def _names(text: str) -> list[str]:
    """Words capitalised inside sentences at least 8 times and hardly ever in lower case."""
    capitalised = Counter(_INSIDE_SENTENCE.findall(text))
    lower = Counter(_LOWER.findall(text))
    return [w for w, n in capitalised.items() if n >= 8 and lower[w.lower()] * 10 < n]


def find_names(texts: list[str], most_novels: int = 6) -> list[list[str]]:
    """For each novel its own names: those found in at most `most_novels` of them.

    The limit leaves out what belongs to no novel (English, Sunday, Christmas, Mary).
    """
    with ProcessPoolExecutor() as pool:
        found = list(pool.map(_names, texts, chunksize=4))
    spread = Counter(name for names in found for name in names)
    return [sorted(name for name in names if spread[name] <= most_novels) for names in found]


def _rename(job: tuple[str, dict[str, str]]) -> str:
    text, mapping = job
    return _CAPITALISED.sub(lambda m: mapping.get(m.group(), m.group()), text)


def rename(texts: list[str], names: list[list[str]], seed: int) -> list[str]:
    """Every novel with its own names exchanged one to one for names from the others."""
    rng = random.Random(seed)
    everyone = sorted({name for own in names for name in own})
    jobs = []
    for text, own in zip(texts, names):
        others = sorted(set(everyone) - set(own))
        jobs.append((text, dict(zip(own, rng.sample(others, len(own))))))
    with ProcessPoolExecutor() as pool:
        return list(pool.map(_rename, jobs, chunksize=4))


# --- returns ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Returns:
    """Puts returning passages into a sequence of text tokens."""

    newline: int
    headings: list[np.ndarray] = field(repr=False)

    SHORTEST, LONGEST = 48, 320

    @staticmethod
    def prepare(tokenizer: Tokenizer, names: list[list[str]], seed: int) -> "Returns":
        rng = random.Random(seed)
        everyone = sorted({name for own in names for name in own})
        texts = [f"[{rng.choice(everyone)} {rng.randint(2, 99)}]" for _ in range(8192)]
        newline = encode(tokenizer, ["\n"])[0]
        assert len(newline) == 1
        return Returns(int(newline[0]), encode(tokenizer, texts))

    def insert(self, text: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """text (s,) -> (s,): one to s / 256 passages return; what overflows the end is dropped."""
        s = len(text)
        if s < 2048:
            return text
        is_break = text == self.newline
        starts = np.flatnonzero(is_break[:-1] & ~is_break[1:]) + 1  # first token of a paragraph
        pieces: list[tuple[int, np.ndarray]] = []
        gap = np.array([self.newline, self.newline], dtype=text.dtype)
        for _ in range(rng.integers(1, s // 256 + 1)):
            span = np.log([self.SHORTEST, self.LONGEST])
            length = int(np.exp(rng.uniform(*span)))
            distance = int(rng.integers(length + 64, s - length - 64))
            source = self._paragraph(starts, int(rng.integers(0, s - length - distance)))
            at = None if source is None else self._paragraph(starts, source + distance)
            if at is None:
                continue
            passage = text[source : source + length]
            if rng.random() < 0.5:
                heading = self.headings[rng.integers(len(self.headings))]
                heading = np.concatenate([heading, gap])
                pieces.append((source, heading))
                passage = np.concatenate([heading, passage])
            pieces.append((at, np.concatenate([passage, gap])))
        pieces.sort(key=lambda piece: piece[0])
        parts, done = [], 0
        for at, piece in pieces:
            parts += [text[done:at], piece]
            done = at
        return np.concatenate([*parts, text[done:]])[:s]

    @staticmethod
    def _paragraph(starts: np.ndarray, at: int) -> int | None:
        """The next paragraph's start, or None where none begins within 256 tokens."""
        index = np.searchsorted(starts, at)
        found = index < len(starts) and starts[index] - at < 256
        return int(starts[index]) if found else None


# --- batches ----------------------------------------------------------------------------------


@dataclass
class Corpus:
    """The training novels as they are and in renamed copies; copies[r][novel] is a uint16 array."""

    novels: list[np.ndarray]
    copies: list[list[np.ndarray]]
    returns: Returns

    @staticmethod
    def build(texts: list[str], tokenizer: Tokenizer, copies: int, seed: int) -> "Corpus":
        names = find_names(texts)
        renamed = [rename(texts, names, seed + r) for r in range(copies)]
        return Corpus(
            novels=encode(tokenizer, texts),
            copies=[encode(tokenizer, copy) for copy in renamed],
            returns=Returns.prepare(tokenizer, names, seed),
        )

    @property
    def tokens(self) -> int:
        return sum(len(novel) for novel in self.novels)


class Sampler:
    """Batches of (b, s + 1) int64 rows, BOS first, without end.

    The novels are read in passes: a pass cuts each novel into windows of s tokens from a fresh
    offset and takes all windows in random order. So every pass reads everything once (but for the
    ends) and no two passes cut alike.
    """

    def __init__(
        self, corpus: Corpus, s: int, b: int, seed: int, renamed_share: float, return_share: float
    ):
        self.corpus, self.s, self.b = corpus, s, b
        self.renamed_share = renamed_share if corpus.copies else 0.0
        self.return_share = return_share
        self.rng = np.random.default_rng([seed, s])
        self.windows: list[tuple[int, int]] = []

    def _new_pass(self):
        for index, novel in enumerate(self.corpus.novels):
            first = int(self.rng.integers(0, min(self.s, len(novel) - self.s + 1)))
            self.windows += [(index, at) for at in range(first, len(novel) - self.s + 1, self.s)]
        self.rng.shuffle(self.windows)

    def _row(self) -> np.ndarray:
        if not self.windows:
            self._new_pass()
        index, at = self.windows.pop()
        novel = self.corpus.novels[index]
        if self.rng.random() < self.renamed_share:
            # A renamed copy has about, not exactly, the same number of tokens: same relative place.
            copy = self.corpus.copies[self.rng.integers(len(self.corpus.copies))][index]
            at = int(at / max(1, len(novel) - self.s) * (len(copy) - self.s))
            novel = copy
        text = novel[at : at + self.s]
        if self.rng.random() < self.return_share:
            text = self.corpus.returns.insert(text, self.rng)
        row = np.zeros(self.s + 1, dtype=np.int64)  # BOS is id 0
        row[1:] = text
        return row

    def batch(self) -> np.ndarray:
        return np.stack([self._row() for _ in range(self.b)])

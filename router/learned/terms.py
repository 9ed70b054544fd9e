"""Words and word pairs of a text as a sparse TF-IDF vector, with nothing but a dict at request time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from router.features import tokens
from router.learned.outcomes import TooFewRows
from router.learned.store import Array, Part, RouterModelInvalid

MIN_TEXTS = 3
"""texts that hold a term, below which nothing is learned of it"""
MOST_WORDS, MOST_PAIRS = 30_000, 100_000
"""of a vocabulary: a version stays in the memory of every worker, some 25 MB at most"""
_TINY = 1e-9


def terms_of(text: str) -> list[str]:
    """The terms of a text: its words, then its pairs of neighbouring words joined by a blank."""
    words = tokens(text)
    return [*words, *[f"{left} {right}" for left, right in pairwise(words)]]


class Terms:
    """A vocabulary with inverse document frequencies; `words` terms, the first ones, are single words.

    A term counts 1 + ln(occurrences), times ln((1 + texts) / (1 + texts with it)) + 1; a vector has length 1, or is
    empty. The same numbers as scikit-learn's `TfidfVectorizer(sublinear_tf=True)` over `terms_of`.
    """

    def __init__(self, vocabulary: Sequence[str], idf: Array) -> None:
        self.vocabulary = list(vocabulary)
        self.words = sum(" " not in term for term in self.vocabulary)
        self.idf = idf
        self._places = {term: place for place, term in enumerate(self.vocabulary[: self.words])}
        # a pair is looked up by its words' places, all pairs of a text at once; a blank sorts before every letter, so
        # that the numbers ascend as the pairs do
        pairs = [pair.split(" ", 1) for pair in self.vocabulary[self.words :]]
        numbers = [self._number(self._places[left], self._places[right]) for left, right in pairs]
        self._pairs = np.array([*numbers, np.iinfo(np.int64).max], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.vocabulary)

    @classmethod
    def fit(cls, texts: Iterable[str], *, min_texts: int) -> Terms:
        """Take the terms that at least `min_texts` of the texts hold, the commonest where there are too many.

        Raises TooFewRows where there is no such term.
        """
        seen: Counter[str] = Counter()
        number = 0
        for text in texts:
            number += 1
            seen.update(set(terms_of(text)))
        kept = _commonest(seen, min_texts)
        if not kept:
            raise TooFewRows(f"no word is in {min_texts} of {number} texts")
        counts = np.array([seen[term] for term in kept], dtype=np.float64)
        return cls(kept, (np.log((1 + number) / (1 + counts)) + 1).astype(np.float32))

    def vector(self, text: str) -> tuple[Array, Array]:
        """Places and values of one text, ordered by place; both of the shape (terms found,)."""
        known = self._places
        found = np.array([known.get(word, -1) for word in tokens(text)], dtype=np.int64)
        left, right = found[:-1], found[1:]
        wanted = self._number(left, right)[(left >= 0) & (right >= 0)]
        pairs = np.searchsorted(self._pairs, wanted)
        pairs = pairs[self._pairs[pairs] == wanted] + self.words
        places, counts = np.unique(np.concatenate([found[found >= 0], pairs]), return_counts=True)
        values = (1 + np.log(counts)) * self.idf[places]
        return places, values / max(math.sqrt(float(values @ values)), _TINY)

    def _number(self, left: Any, right: Any) -> Any:
        return left * self.words + right

    def part(self) -> Part:
        """To save, as a share of the part of whoever uses it."""
        return Part("terms", {"vocabulary": self.vocabulary}, {"idf": self.idf})

    @classmethod
    def from_part(cls, part: Part) -> Terms:
        """From a part that holds them. Raises RouterModelInvalid."""
        vocabulary = part.setting("vocabulary", list)
        if not all(isinstance(term, str) for term in vocabulary):
            raise RouterModelInvalid(f"the vocabulary of part '{part.kind}' holds what is no text")
        if vocabulary != sorted(set(vocabulary), key=_words_first):
            raise RouterModelInvalid(f"the vocabulary of part '{part.kind}' is out of order")
        try:
            return cls(vocabulary, part.array("idf", len(vocabulary)))
        except KeyError as error:
            raise RouterModelInvalid(
                f"the vocabulary of part '{part.kind}' has pairs of unknown words: {error}"
            ) from None


def _commonest(seen: Counter[str], min_texts: int) -> list[str]:
    """Terms in order, `MOST_WORDS` and `MOST_PAIRS` at most; a pair stays with both of its words alone."""
    often = sorted((term for term, texts_with in seen.items() if texts_with >= min_texts), key=lambda t: (-seen[t], t))
    words = [term for term in often if " " not in term][:MOST_WORDS]
    known = frozenset(words)
    pairs = [term for term in often if " " in term and known.issuperset(term.split(" ", 1))][:MOST_PAIRS]
    return [*sorted(words), *sorted(pairs)]


def _words_first(term: str) -> tuple[bool, str]:
    return " " in term, term

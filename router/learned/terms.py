"""Words and word pairs of a text as a sparse TF-IDF vector, with nothing but a dict at request time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import numpy as np

from router.features import tokens
from router.learned.store import Array, Part, RouterModelInvalid


def terms_of(text: str) -> Iterator[str]:
    """The terms of a text: its words, then its pairs of neighbouring words joined by a blank."""
    words = tokens(text)
    yield from words
    for left, right in pairwise(words):
        yield f"{left} {right}"


class Terms:
    """A vocabulary with inverse document frequencies.

    A term counts 1 + ln(occurrences), times ln((1 + texts) / (1 + texts with it)) + 1; a vector has length 1, or is
    empty. The same numbers as scikit-learn's `TfidfVectorizer(sublinear_tf=True)` over `terms_of`.
    """

    def __init__(self, vocabulary: Sequence[str], idf: Array) -> None:
        self.vocabulary = list(vocabulary)
        self.idf = idf
        self._places = {term: (place, float(idf[place])) for place, term in enumerate(self.vocabulary)}

    def __len__(self) -> int:
        return len(self.vocabulary)

    @classmethod
    def fit(cls, texts: Iterable[str], *, min_texts: int) -> Terms:
        """Take the terms that at least `min_texts` of the texts hold."""
        seen: Counter[str] = Counter()
        number = 0
        for text in texts:
            number += 1
            seen.update(set(terms_of(text)))
        kept = sorted(term for term, texts_with in seen.items() if texts_with >= min_texts)
        counts = np.array([seen[term] for term in kept], dtype=np.float64)
        return cls(kept, (np.log((1 + number) / (1 + counts)) + 1).astype(np.float32))

    def vector(self, text: str) -> list[tuple[int, float]]:
        """Places and values of one text."""
        places = self._places
        counts: dict[tuple[int, float], int] = {}
        for term in terms_of(text):
            if term in places:
                found = places[term]
                counts[found] = counts.get(found, 0) + 1
        values = [(place, idf if count == 1 else (1 + math.log(count)) * idf) for (place, idf), count in counts.items()]
        length = math.sqrt(sum(value * value for _, value in values))
        return [(place, value / length) for place, value in values]

    def part(self) -> Part:
        """To save, as a share of the part of whoever uses it."""
        return Part("terms", {"vocabulary": self.vocabulary}, {"idf": self.idf})

    @classmethod
    def from_part(cls, part: Part) -> Terms:
        """From a part that holds them. Raises RouterModelInvalid."""
        vocabulary = part.setting("vocabulary", list)
        if not all(isinstance(term, str) for term in vocabulary):
            raise RouterModelInvalid(f"the vocabulary of part '{part.kind}' holds what is no text")
        return cls(vocabulary, part.array("idf", len(vocabulary)))

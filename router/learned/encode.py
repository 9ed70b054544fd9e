"""A task as numbers, three ways: its terms, its form, and the topics that its words belong to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from router.learned import structure
from router.learned.store import Array, Part
from router.learned.terms import Terms

TOPICS = 50
LEAST_FORM = 1e-6
"""spread under which a feature of the form is constant and says nothing"""
_TINY = 1e-9


class Encoded(NamedTuple):
    """One task: places and values of its terms, its standardised form, and its place among the topics."""

    places: Array
    values: Array
    form: Array
    topics: Array


class EncodedRows(NamedTuple):
    """Many tasks: a sparse matrix (rows, terms), and dense ones (rows, features of the form) and (rows, topics)."""

    terms: Any
    form: Array
    topics: Array

    def take(self, places: Array) -> EncodedRows:
        """Some of the rows."""
        return EncodedRows(self.terms[places], self.form[places], self.topics[places])


class Encoder:
    """Vocabulary, scale of the form, and directions of the topics (latent semantic analysis of the words)."""

    def __init__(self, terms: Terms, mean: Array, scale: Array, directions: Array) -> None:
        self.terms = terms
        self._mean = mean
        self._scale = scale
        self._directions = directions

    @property
    def forms(self) -> int:
        """Number of features of the form."""
        return len(structure.NAMES)

    @property
    def topics(self) -> int:
        """Number of topics: `TOPICS`, or fewer where there were few rows."""
        return int(self._directions.shape[1])

    def encode(self, text: str) -> Encoded:
        """One task, in well under a millisecond."""
        places, values = self.terms.vector(text)
        words = int(np.searchsorted(places, self.terms.words))
        form = (np.array(structure.structure(text)) - self._mean) * self._scale
        return Encoded(places, values, form, _unit(values[:words] @ self._directions[places[:words]]))

    @classmethod
    def fit(cls, texts: Sequence[str], *, min_texts: int, seed: int) -> tuple[Encoder, EncodedRows]:
        """Fit on texts, whose outcomes it does not see, and encode them. Raises TooFewRows where they share no word."""
        from sklearn.decomposition import TruncatedSVD

        terms = Terms.fit(texts, min_texts=min_texts)
        matrix = sparse(terms, texts)
        forms = np.array([structure.structure(text) for text in texts])
        spread = forms.std(axis=0)
        scale = np.where(spread > LEAST_FORM, 1 / np.maximum(spread, LEAST_FORM), 0.0)
        words = matrix[:, : terms.words]
        number = max(1, min(TOPICS, len(texts) // 10, terms.words - 1))
        directions = TruncatedSVD(number, random_state=seed).fit(words).components_.T
        encoder = cls(terms, forms.mean(axis=0), scale, directions.astype(np.float16).astype(np.float32))
        topics = words @ encoder._directions
        topics /= np.maximum(np.linalg.norm(topics, axis=1, keepdims=True), _TINY)
        return encoder, EncodedRows(matrix, (forms - encoder._mean) * scale, topics)

    def part(self) -> Part:
        """To save, as a share of the part of whoever uses it."""
        terms = self.terms.part()
        # half precision halves the largest array, and `fit` has rounded to it already
        directions = self._directions.astype(np.float16)
        arrays = {**terms.arrays, "mean": self._mean, "scale": self._scale, "directions": directions}
        return Part("encoder", terms.settings, arrays)

    @classmethod
    def from_part(cls, part: Part) -> Encoder:
        """From a part that holds one. Raises RouterModelInvalid."""
        terms = Terms.from_part(part)
        features = len(structure.NAMES)
        directions = part.array("directions", terms.words, -1).astype(np.float32)
        return cls(terms, part.array("mean", features), part.array("scale", features), directions)


def _unit(vector: Array) -> Array:
    return np.asarray(vector / max(float(np.sqrt(vector @ vector)), _TINY))


def sparse(terms: Terms, texts: Sequence[str]) -> Any:
    """The texts' vectors as the rows of one sparse matrix."""
    from scipy.sparse import csr_matrix

    vectors = [terms.vector(text) for text in texts]
    ends = np.cumsum([0, *(len(places) for places, _ in vectors)])
    places = np.concatenate([places for places, _ in vectors])
    values = np.concatenate([values for _, values in vectors])
    return csr_matrix((values, places, ends), shape=(len(texts), len(terms)))

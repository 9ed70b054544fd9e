"""The cases nearest to a task, and what came of them, as numbers for a forest.

The cases are the rows of the fit, so that looking them up crosses no border between API keys that the fit has not
crossed. Kept are a case's place among the topics and its outcome, no text.
"""

from __future__ import annotations

import numpy as np

from router.learned.store import Array, Part, RouterModelInvalid

FEW, MANY = NEAREST = (30, 300)
"""cases that are looked at: those that share a question's matter, and about as many as a subject has"""
MOST_CASES = 12_000
"""of a version; a task is compared with each of them, in about 17 ns"""
LARGEST_PLACE, LARGEST_WEIGHT = 1.01, 1e6
"""of what is loaded: unit vectors as half-precision numbers, and weights whose mean is 1"""
MEAN_WEIGHT = 1.0
"""of the mean of all cases, beside cases that count the square of their similarity: alike ones 1, strange ones 0"""
NAMES = (
    *(f"{target}_of_{number}" for number in NEAREST for target in ("gain", "level")),
    "nearest",
    "similarity",
    "disagreement",
)
"""mean gain and level of the nearest, by similarity; similarity of the nearest case, and mean one of the first few;
spread of these few cases' gains"""
_ROWS_AT_ONCE = 500
_TINY = 1e-9
Kin = tuple[Array, Array]
"""a mark of each row and one of each case; a row's kin are the cases of its mark"""


class Neighbours:
    """Cases as unit vectors `places` (cases, topics), with `targets` (cases, 2: gain and level) and `weights` (cases,).

    Similarity is the cosine of the topics, 0 at least.
    """

    def __init__(self, places: Array, targets: Array, weights: Array) -> None:
        self._targets = targets
        self._weights = weights
        self._mean = np.average(targets, axis=0, weights=weights).astype(np.float32)
        self._apart = targets - self._mean
        self._across = np.ascontiguousarray(places.T)  # read a fifth faster than down the cases

    def features(self, topics: Array) -> Array:
        """What the cases say of one task, whose topics have the shape (topics,); shape (len(NAMES),)."""
        # no matrix product: that takes several threads, which spin for each other while the endpoint waits
        similarity = np.einsum("t,tc->c", topics.astype(np.float32), self._across)
        return np.asarray(self._said(similarity[None])[0])

    def features_of_rows(self, topics: Array, kin: Kin | None = None) -> Array:
        """The same of many tasks, each as if its kin were unknown; shape (rows, len(NAMES))."""
        topics = topics.astype(np.float32)
        said = []
        for start in range(0, len(topics), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            similarity = topics[part] @ self._across
            if kin is not None:
                of_rows, of_cases = kin
                similarity[of_rows[part, None] == of_cases[None, :]] = 0.0
            said.append(self._said(similarity))
        return np.concatenate(said)

    def features_of_own(self, topics: Array, prompts: Array) -> Array:
        """The same of the rows of the fit, by those of other prompts; shape (rows, len(NAMES)).

        Equal entries of `prompts`, shape (rows,), mark rows of one prompt. A row that saw its own outcome here would
        teach the forest to trust neighbours that no request has.
        """
        return self.features_of_rows(topics, (prompts, prompts[-len(self._targets) :]))

    @classmethod
    def fit(cls, topics: Array, targets: Array, weights: Array) -> Neighbours:
        """Keep the last cases; `topics` are unit vectors, or zero where no word is known."""
        places = topics[-MOST_CASES:].astype(np.float16).astype(np.float32)  # as they will be saved
        weights = weights[-MOST_CASES:] / weights[-MOST_CASES:].mean()
        return cls(places, targets[-MOST_CASES:].astype(np.float32), weights.astype(np.float32))

    def part(self) -> Part:
        """To save, as a share of the part of whoever uses it."""
        # half precision halves the largest array, and `fit` has rounded to it already
        places = self._across.T.astype(np.float16)
        arrays = {"case_places": places, "case_targets": self._targets, "case_weights": self._weights}
        return Part("neighbours", arrays=arrays)

    @classmethod
    def from_part(cls, part: Part, *, topics: int) -> Neighbours:
        """From a part that holds them. Raises RouterModelInvalid."""
        places = part.array("case_places", -1, topics)
        targets, weights = part.array("case_targets", len(places), 2), part.array("case_weights", len(places))
        if not 0 < len(places) <= MOST_CASES:
            raise RouterModelInvalid(f"part '{part.kind}' has {len(places)} cases; 1 to {MOST_CASES} can be asked")
        if np.abs(places).max() > LARGEST_PLACE or np.abs(targets).max() > 1 or weights.max() > LARGEST_WEIGHT:
            raise RouterModelInvalid(f"the cases of part '{part.kind}' are no unit vectors, outcomes and weights")
        if weights.min() < 0 or not weights.any():
            raise RouterModelInvalid(f"the cases of part '{part.kind}' count nothing")
        return cls(places.astype(np.float32), targets, weights)

    def _said(self, similarity: Array) -> Array:
        """`NAMES` for tasks of those similarities to the cases, shape (tasks, cases)."""
        found = _nearest(similarity)
        near = np.maximum(similarity[np.arange(len(found))[:, None], found], 0.0)
        counts, apart = near * near * self._weights[found], self._apart[found]
        said = []
        for number in NEAREST:
            total = counts[:, -number:].sum(axis=1, keepdims=True) + MEAN_WEIGHT
            said.append(self._mean + (counts[:, None, -number:] @ apart[:, -number:])[:, 0] / total)
        near, counts, gains = near[:, -FEW:], counts[:, -FEW:], apart[:, -FEW:, 0]
        spread = np.sqrt((counts * gains * gains).sum(axis=1) / (counts.sum(axis=1) + _TINY))
        return np.concatenate([*said, np.stack([near.max(axis=1), near.mean(axis=1), spread], axis=1)], axis=1)


def _nearest(similarity: Array) -> Array:
    """Places of the `MANY` most similar cases of each row, of which the last are the `FEW` most similar ones."""
    tasks, cases = similarity.shape
    if cases <= FEW:
        return np.broadcast_to(np.arange(cases), similarity.shape)
    row = np.arange(tasks)[:, None]
    found = similarity.argpartition(-min(MANY, cases), axis=1)[:, -MANY:]
    # twice, because parting all cases at two places takes three times as long
    return np.asarray(found[row, similarity[row, found].argpartition(-FEW, axis=1)])

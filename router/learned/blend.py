"""The estimator that wins: the mean of a ridge regression and a forest.

Both predict two numbers of a task, the gain (strong outcome minus weak one) and the level (the mean of the two),
rather than the outcomes themselves: the level is easy to see and the gain nearly noise, so that they need different
shrinkage, and the gain of two separate predictions would be the difference of two errors.

The ridge regression reads the terms and the form of a task, the forest its form and its topics, and in `NeighbourBlend`
what came of the nearest cases. On unseen kinds of task the form carries nearly everything (see docs/routing.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from router.features import Features
from router.learned import neighbours
from router.learned.encode import EncodedRows, Encoder
from router.learned.forest import TREES, Forest, fit_trees
from router.learned.neighbours import Neighbours
from router.learned.outcomes import RouteRow, TierOutcomes
from router.learned.store import Array, Part
from router.learned.terms import MIN_TEXTS

LEVEL = 1
"""column; the gain is in column 0"""
INNER_FOLDS = 2
INNER_TREES = 30
"""enough to see how the level has to be stretched"""
MOST_SLOPE = 2.0
"""of the level's calibration; few rows may seem to ask for any"""
ALPHA = 30.0
"""ridge penalty; anything from 15 to 40 is as good"""
FORM_SCALE = 0.05
"""weight of the form's features (of spread 1) beside the terms' (a vector of length 1)"""
LEVEL_IN_FOREST = 0.3
"""weight of the level where one tree serves both numbers; at 1 it would choose nearly all splits"""
_FOREST_SCALE = np.array([1.0, LEVEL_IN_FOREST])
FLOOR = 0.02
"""least distance of a probability from 0 and from 1: a regression may go beyond them"""


class Blend:
    """The fitted parts. Of the two columns of every array the first is the gain's, the second the level's.

    `weights` are the terms' and then the form's in the ridge regression; `line` has the rows bias and slope, for the
    mean of both; `near` are the cases that the forest is told of, None where it is told of none.
    """

    KIND = "blend"
    ASKS_NEIGHBOURS: ClassVar[bool] = False

    def __init__(
        self, encoder: Encoder, weights: Array, forest: Forest, line: Array, near: Neighbours | None = None
    ) -> None:
        self._encoder = encoder
        self._term_weights = weights[: len(encoder.terms)]
        self._form_weights = weights[len(encoder.terms) :]
        self._forest = forest
        self._line = line
        self._near = near

    def outcomes(self, features: Features, text: str) -> TierOutcomes:
        """Encode, regress, look up what is near, ask the trees, blend."""
        task = self._encoder.encode(text)
        ridge = task.values @ self._term_weights[task.places] + task.form @ self._form_weights
        told = [task.form, task.topics]
        if self._near is not None:
            told.append(self._near.features(task.topics))
        trees = self._forest.predict(np.concatenate(told).astype(np.float32))
        gain, level = (self._line[0] + self._line[1] * (ridge + trees) / 2).tolist()
        return _outcomes(gain, level)

    @classmethod
    def fit(cls, rows: Sequence[RouteRow], *, seed: int = 0) -> Self:
        """Fit both parts on all rows, and the level's calibration on held-out parts of them.

        Rows of one group are held out together: what only tells known groups apart is worth nothing for new ones. The
        gain is left as it is: it is too noisy for a slope of its own to be found, and both parts shrink it well (see
        docs/routing.md).
        """
        encoder, encoded = Encoder.fit([row.prompt for row in rows], min_texts=MIN_TEXTS, seed=seed)
        targets = np.array([(row.strong - row.weak, (row.strong + row.weak) / 2) for row in rows])
        prompts = _numbered([row.prompt for row in rows])
        known = _Rows(encoded, targets, np.array([row.weight for row in rows]), prompts)
        held_out = _held_out(known, _folds(rows, seed), seed, asks_neighbours=cls.ASKS_NEIGHBOURS)
        bias, slope = _calibrated(held_out[:, LEVEL], targets[:, LEVEL], known.weights)
        line = np.array([[0.0, bias], [1.0, slope]])
        ridge = _fit_ridge(known)
        line[0] += line[1] * ridge.intercept_ / 2
        coefficients = ridge.coef_.T.copy()
        coefficients[len(encoder.terms) :] *= FORM_SCALE
        near = known.neighbours() if cls.ASKS_NEIGHBOURS else None
        forest = Forest.from_sklearn(_fit_forest(known, near, seed), scale=1 / _FOREST_SCALE)
        return cls(encoder, coefficients.astype(np.float32), forest, line, near)

    def part(self) -> Part:
        """To save."""
        encoder, forest = self._encoder.part(), self._forest.part()
        near = {} if self._near is None else self._near.part().arrays
        weights = np.concatenate([self._term_weights, self._form_weights])
        own = {"weights": weights, "line": self._line}
        return Part(self.KIND, encoder.settings, {**encoder.arrays, **forest.arrays, **near, **own})

    @classmethod
    def from_part(cls, part: Part) -> Self:
        """From what was saved. Raises RouterModelInvalid."""
        encoder = Encoder.from_part(part)
        near = Neighbours.from_part(part, topics=encoder.topics) if cls.ASKS_NEIGHBOURS else None
        features = encoder.forms + encoder.topics + (len(neighbours.NAMES) if near else 0)
        forest = Forest.from_part(part, features=features, targets=2)
        weights = part.array("weights", len(encoder.terms) + encoder.forms, 2)
        return cls(encoder, weights, forest, part.array("line", 2, 2), near)


class NeighbourBlend(Blend):
    """The same, with a forest that is also told what came of the cases nearest to the task."""

    KIND = "neighbours"
    ASKS_NEIGHBOURS = True


class _Rows(NamedTuple):
    """The rows of a fit: gain and level, shape (rows, 2), weights, and the number of each row's prompt."""

    encoded: EncodedRows
    targets: Array
    weights: Array
    prompts: Array

    def take(self, places: Array) -> _Rows:
        return _Rows(self.encoded.take(places), self.targets[places], self.weights[places], self.prompts[places])

    def neighbours(self) -> Neighbours:
        return Neighbours.fit(self.encoded.topics, self.targets, self.weights)


def _folds(rows: Sequence[RouteRow], seed: int) -> Array:
    """The inner fold of each row: by group, where there are enough of them, else by prompt."""
    groups = {row.group for row in rows}
    grouped = None not in groups and len(groups) >= INNER_FOLDS
    unit = _numbered([str(row.group) if grouped else row.prompt for row in rows])
    return np.asarray((np.random.default_rng(seed).permutation(unit.max() + 1) % INNER_FOLDS)[unit])


def _numbered(names: Sequence[str]) -> Array:
    """Equal names get equal numbers."""
    return np.asarray(np.unique(names, return_inverse=True)[1])


def _fit_ridge(rows: _Rows) -> Any:
    from sklearn.linear_model import Ridge

    return Ridge(ALPHA, solver="sparse_cg", tol=1e-3).fit(_ridge_input(rows.encoded), rows.targets, rows.weights)


def _ridge_input(encoded: EncodedRows) -> Any:
    from scipy.sparse import csr_matrix, hstack

    return hstack([encoded.terms, csr_matrix(encoded.form * FORM_SCALE)], format="csr")


def _fit_forest(rows: _Rows, near: Neighbours | None, seed: int, *, trees: int = TREES) -> Any:
    told = None if near is None else near.features_of_own(rows.encoded.topics, rows.prompts)
    features = _forest_input(rows.encoded, told)
    return fit_trees(features, rows.targets * _FOREST_SCALE, rows.weights, seed=seed, trees=trees)


def _forest_input(encoded: EncodedRows, near: Array | None) -> Array:
    told = [encoded.form, encoded.topics, *([] if near is None else [near])]
    return np.asarray(np.concatenate(told, axis=1), dtype=np.float32)


def _held_out(rows: _Rows, fold: Array, seed: int, *, asks_neighbours: bool) -> Array:
    """The mean of both parts for each row, fitted without its fold; shape (rows, 2)."""
    said = np.zeros_like(rows.targets)
    for number in range(INNER_FOLDS):
        held = np.flatnonzero(fold == number)
        known, unknown = rows.take(np.flatnonzero(fold != number)), rows.encoded.take(held)
        near = known.neighbours() if asks_neighbours else None
        trees = _fit_forest(known, near, seed, trees=INNER_TREES)
        told = None if near is None else near.features_of_rows(unknown.topics)
        by_trees = trees.predict(_forest_input(unknown, told)) / _FOREST_SCALE
        said[held] = (_fit_ridge(known).predict(_ridge_input(unknown)) + by_trees) / 2
    return said


def _calibrated(said: Array, target: Array, weights: Array) -> tuple[float, float]:
    """Bias and slope of least squared error."""
    centre, goal = np.average(said, weights=weights), np.average(target, weights=weights)
    spread = float(weights @ (said - centre) ** 2)
    slope = float(weights @ ((said - centre) * (target - goal))) / spread if spread else 0.0
    slope = min(max(slope, 1 / MOST_SLOPE), MOST_SLOPE)
    return float(goal - slope * centre), slope


def _outcomes(gain: float, level: float) -> TierOutcomes:
    """Probabilities of that gain and, where both fit between `FLOOR` and 1 - `FLOOR`, of that level."""
    half = min(max(gain / 2, FLOOR - 0.5), 0.5 - FLOOR)
    room = FLOOR + abs(half)
    level = min(max(level, room), 1 - room)
    return TierOutcomes(level - half, level + half)

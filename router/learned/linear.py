"""TF-IDF and logistic regression over the four joint outcomes of two tiers: the baseline that others must beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from router.features import Features
from router.learned.encode import sparse
from router.learned.outcomes import RouteRow, TierOutcomes
from router.learned.store import Array, Part
from router.learned.terms import MIN_TEXTS, Terms

CELLS = 4
"""neither is right, only the strong tier, only the weak one, both: bit 0 is the strong tier, bit 1 the weak one"""
C = 1.0


class LinearOutcomes:
    """Multinomial logistic regression; `weights` has a row a term, `bias` a value a cell."""

    KIND = "tfidf"

    def __init__(self, terms: Terms, weights: Array, bias: Array) -> None:
        self._terms = terms
        self._weights = weights
        self._bias = bias

    def outcomes(self, features: Features, text: str) -> TierOutcomes:
        """Sum the cells in which each tier is right."""
        places, values = self._terms.vector(text)
        scores = self._bias + values @ self._weights[places]
        odds = np.exp(scores - scores.max())
        _, only_strong, only_weak, both = (odds / odds.sum()).tolist()
        return TierOutcomes(weak=only_weak + both, strong=only_strong + both)

    @classmethod
    def fit(cls, rows: Sequence[RouteRow], *, seed: int = 0) -> LinearOutcomes:
        """Fit by maximum likelihood; an outcome between 0 and 1 counts as its share of either."""
        from sklearn.linear_model import LogisticRegression

        terms = Terms.fit((row.prompt for row in rows), min_texts=MIN_TEXTS)
        matrix = sparse(terms, [row.prompt for row in rows])
        weak, strong = np.array([row.weak for row in rows]), np.array([row.strong for row in rows])
        weight = np.array([row.weight for row in rows])
        shares = np.stack([(1 - weak) * (1 - strong), (1 - weak) * strong, weak * (1 - strong), weak * strong])
        cells, used = np.nonzero(shares)
        model = LogisticRegression(C=C, max_iter=200, tol=1e-3, random_state=seed)
        model.fit(matrix[used], cells, (shares * weight)[cells, used])
        weights, bias = np.zeros((len(terms), CELLS), np.float32), np.full(CELLS, -20.0, np.float32)
        if len(model.classes_) == 2:  # scikit-learn has one logit for both
            model.coef_ = np.vstack([-model.coef_ / 2, model.coef_ / 2])
            model.intercept_ = np.concatenate([-model.intercept_ / 2, model.intercept_ / 2])
        weights[:, model.classes_], bias[model.classes_] = model.coef_.T, model.intercept_
        return cls(terms, weights, bias)

    def part(self) -> Part:
        """To save."""
        terms = self._terms.part()
        arrays = {**terms.arrays, "weights": self._weights, "bias": self._bias}
        return Part(self.KIND, terms.settings, arrays)

    @classmethod
    def from_part(cls, part: Part) -> LinearOutcomes:
        """From what was saved. Raises RouterModelInvalid."""
        terms = Terms.from_part(part)
        return cls(terms, part.array("weights", len(terms), CELLS), part.array("bias", CELLS))

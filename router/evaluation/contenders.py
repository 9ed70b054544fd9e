"""Who takes part in a comparison: estimators by name, each with how it is fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from router.evaluation.baselines import ByGain, Scorer, by_length, by_rules
from router.learned import OutcomeEstimator, RouteRow, fit_outcomes
from router.learned.fit import ESTIMATORS

Fit = Callable[[Sequence[RouteRow], int], Scorer]
Contenders = Mapping[str, Fit]
BASELINES = ("length", "rules")
REFERENCE = "tfidf"
"""whom the others are compared with, on the same rows"""


def contenders(others: Mapping[str, Callable[[Sequence[RouteRow], int], OutcomeEstimator]] | None = None) -> Contenders:
    """Everybody by name: the baselines, what `fit_outcomes` knows, and `others` that are fitted elsewhere."""
    everybody: dict[str, Fit] = {"length": lambda rows, _: by_length(rows), "rules": lambda rows, _: by_rules(rows)}
    for name in ESTIMATORS:
        everybody[name] = _learned(lambda rows, seed, name=name: fit_outcomes(rows, seed=seed, estimator=name))  # type: ignore[misc]
    for name, fit in (others or {}).items():
        everybody[name] = _learned(fit)
    return everybody


def _learned(fit: Callable[[Sequence[RouteRow], int], OutcomeEstimator]) -> Fit:
    return lambda rows, seed: ByGain(fit(rows, seed))

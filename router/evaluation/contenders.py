"""Who takes part in a comparison: estimators by name, each with how it is fitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from router.evaluation.baselines import ByDifficulty, ByGain, Scorer, by_length, by_rules
from router.learned import OutcomeEstimator, RouteRow, fit_outcomes
from router.learned.blend import NeighbourBlend
from router.learned.fit import ESTIMATORS

Fit = Callable[[Sequence[RouteRow], int], Scorer]
Contenders = Mapping[str, Fit]
BASELINES = ("length", "rules")
REFERENCE = "tfidf"
"""whom the others are compared with, on the same rows"""


def contenders(
    daao: Callable[[Sequence[RouteRow], int], OutcomeEstimator] | None = None, *, neighbours: bool = False
) -> Contenders:
    """By name: the baselines, what `fit_outcomes` knows, and DAAO's head, which is fitted elsewhere.

    `neighbours` takes as much time as all others together, so it takes part only where it is asked for.
    """
    everybody: dict[str, Fit] = {"length": lambda rows, _: by_length(rows), "rules": lambda rows, _: by_rules(rows)}
    everybody |= {name: partial(_fit, name) for name in ESTIMATORS if neighbours or name != NeighbourBlend.KIND}
    if daao is not None:
        everybody["daao"] = lambda rows, seed: ByDifficulty(daao(rows, seed))
    return everybody


def _fit(name: str, rows: Sequence[RouteRow], seed: int) -> Scorer:
    return ByGain(fit_outcomes(rows, seed=seed, estimator=name))

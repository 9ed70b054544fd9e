"""Fitting: rows or texts go in, an estimator for the request path comes out. Slow; imports scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from router.agents import AgentRecogniser
from router.features import excerpt
from router.learned.blend import Blend, NeighbourBlend
from router.learned.linear import LinearOutcomes
from router.learned.outcomes import OutcomeEstimator, RouteRow, TooFewRows
from router.learned.recogniser import FamiliarityRecogniser

AUTO = "auto"
ESTIMATORS: dict[str, type[LinearOutcomes] | type[Blend]] = {
    each.KIND: each for each in (LinearOutcomes, Blend, NeighbourBlend)
}
LEAST_ROWS = 50
"""fewer tell nothing"""


def fit_outcomes(rows: Sequence[RouteRow], *, seed: int = 0, estimator: str = AUTO) -> OutcomeEstimator:
    """Learn both tiers' outcomes from the excerpts that a request is judged by. `auto` is the blend.

    Raises TooFewRows for fewer than `LEAST_ROWS` rows, where all had the same outcome or the same prompt, or where no
    word is in several of them; ValueError for an estimator that does not exist.
    """
    name = Blend.KIND if estimator == AUTO else estimator
    if name not in ESTIMATORS:
        raise ValueError(f"no estimator '{estimator}'; there are: {AUTO}, {', '.join(ESTIMATORS)}")
    if len(rows) < LEAST_ROWS:
        raise TooFewRows(f"{len(rows)} rows; {LEAST_ROWS} are the least to learn outcomes from")
    if len({(row.weak, row.strong) for row in rows}) < 2:
        raise TooFewRows("all rows have the same outcome")
    rows = [replace(row, prompt=excerpt(row.prompt)) for row in rows]
    if len({row.prompt for row in rows}) < 2:
        raise TooFewRows("all rows have the same prompt")
    return ESTIMATORS[name].fit(rows, seed=seed)


def fit_recogniser(texts: Sequence[str], agents: Sequence[str], *, seed: int = 0) -> AgentRecogniser:
    """Learn to tell the agent of a text, and that it is none's, from the excerpts that a request is judged by.

    Raises TooFewRows for fewer than `LEAST_ROWS` texts or fewer than two agents.
    """
    if len(texts) < LEAST_ROWS:
        raise TooFewRows(f"{len(texts)} texts; {LEAST_ROWS} are the least to learn agents from")
    if len(set(agents)) < 2:
        raise TooFewRows("all texts are of one agent")
    return FamiliarityRecogniser.fit([excerpt(text) for text in texts], agents, seed=seed)

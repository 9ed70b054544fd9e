"""What a learned estimator has to beat: the length of the prompt and the documented rules, as scores."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from router.difficulty import RuleDifficulty
from router.features import Features, extract
from router.learned import OutcomeEstimator, RouteRow, TierOutcomes
from router.learned.logistic import fit_line
from router.task import Task

CALIBRATION_ROWS = 2000
"""rows that two numbers are fitted on, about"""


class Judgement(NamedTuple):
    """What is thought of a task: the higher the score, the sooner it goes to the strong tier."""

    score: float
    outcomes: TierOutcomes


class Scorer(Protocol):
    """Anything that ranks tasks by how much the strong tier is worth for them, and predicts both outcomes."""

    def judge(self, features: Features, text: str) -> Judgement:
        """Judge one task; called as an OutcomeEstimator is."""
        ...


class ByGain:
    """Ranks by the gain that an estimator predicts."""

    def __init__(self, estimator: OutcomeEstimator) -> None:
        self._estimator = estimator

    def judge(self, features: Features, text: str) -> Judgement:
        """The predicted outcomes, and their difference."""
        outcomes = self._estimator.outcomes(features, text)
        return Judgement(outcomes.gain, outcomes)


class ByDifficulty:
    """Ranks by the failure of the weak tier, whatever the strong one does."""

    def __init__(self, estimator: OutcomeEstimator) -> None:
        self._estimator = estimator

    def judge(self, features: Features, text: str) -> Judgement:
        """The predicted outcomes, and the probability that the weak tier fails."""
        outcomes = self._estimator.outcomes(features, text)
        return Judgement(1 - outcomes.weak, outcomes)


class ByScore:
    """Ranks by a score that knows no outcomes; the outcome of each tier is a logistic function of it, fitted."""

    def __init__(self, score: Callable[[Features, str], float], rows: Sequence[RouteRow]) -> None:
        self._score = score
        rows = rows[:: max(1, len(rows) // CALIBRATION_ROWS)]
        scores = np.array([score(*seen(row.prompt)) for row in rows])
        self._weak = fit_line(scores, np.array([row.weak for row in rows]))
        self._strong = fit_line(scores, np.array([row.strong for row in rows]))

    def judge(self, features: Features, text: str) -> Judgement:
        """The score, and what rows of that score came to."""
        score = self._score(features, text)
        return Judgement(score, TierOutcomes(self._weak.probability(score), self._strong.probability(score)))


def by_length(rows: Sequence[RouteRow]) -> ByScore:
    """Rank by the characters of the prompt."""
    return ByScore(lambda features, _: math.log1p(features.chars), rows)


def by_rules(rows: Sequence[RouteRow]) -> ByScore:
    """Rank by the difficulty that the rules see."""
    return ByScore(RuleDifficulty().estimate, rows)


def seen(prompt: str) -> tuple[Features, str]:
    """What an estimator is given of a prompt in the request path."""
    task = Task.from_messages(prompt)
    return extract(task), task.text

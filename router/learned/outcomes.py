"""What is learned of tasks: which of two tiers does them right. Data of the fit, answer of an estimator, its interface.

The estimators predict both tiers' outcomes rather than the failure of the weak one: sending a task up pays only where
the strong tier is right *and* the weak one is wrong, and costs where it is the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from router.features import Features


@dataclass(frozen=True, slots=True)
class RouteRow:
    """One task whose outcome on the weakest and on the strongest tier is known, both in [0, 1] (1 is right).

    `group` is the kind of task (a subject, an agent), None where that is not known; it is used in the fit alone.
    """

    prompt: str
    weak: float
    strong: float
    group: str | None = None
    weight: float = 1.0


class TierOutcomes(NamedTuple):
    """Calibrated probabilities that the weakest and the strongest tier do the task right."""

    weak: float
    strong: float

    @property
    def gain(self) -> float:
        """What sending the task to the strongest tier is expected to add, in [-1, 1]."""
        return self.strong - self.weak


class OutcomeEstimator(Protocol):
    """Anything that predicts outcomes. Called in the request path: no I/O, well under 2 ms, never raises."""

    def outcomes(self, features: Features, text: str) -> TierOutcomes:
        """Predict for a task; `text` is the excerpt that `features` were taken from."""
        ...


class LearnedDifficulty:
    """Difficulty as the probability that the weakest tier fails, so that it is calibrated and 0.5 means what it says.

    The gain is no difficulty: it is low for the tasks that no tier can do, which are the hardest. Whoever has the
    outcomes already needs no second look: difficulty is `1 - outcomes.weak`.
    """

    def __init__(self, outcomes: OutcomeEstimator) -> None:
        self._outcomes = outcomes

    def estimate(self, features: Features, text: str) -> float:
        """P(weakest tier wrong)."""
        return 1.0 - self._outcomes.outcomes(features, text).weak

"""What is learned of tasks: which of two tiers does them right. Data of the fit, answer of an estimator, its interface.

The estimators predict both tiers' outcomes rather than the failure of the weak one: sending a task up pays only where
the strong tier is right *and* the weak one is wrong, and costs where it is the other way round.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from router.features import Features


class TooFewRows(ValueError):
    """There is not enough to learn from. The message is one line and says what is missing."""


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

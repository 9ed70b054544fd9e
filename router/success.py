"""How likely each tier, and an adapter on it, is to do a task well: the interface, the prior, and what was learned."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from router.difficulty import DifficultyEstimator
from router.features import Features
from router.learned import OutcomeEstimator

CEILING = 0.97
"""success probability that an adapter lifts its base towards"""


class Outlook(NamedTuple):
    """One task's difficulty in [0, 1], and the success probabilities of the weakest and the strongest tier."""

    difficulty: float
    weak: float
    strong: float

    def base(self, strength: float) -> float:
        """P(success) of the tier of that rank in [0, 1]: on the line between the weakest and the strongest."""
        return self.weak + strength * (self.strong - self.weak)

    def adapter(self, strength: float, lift: float) -> float:
        """P(success) of an adapter that mends `lift` of its base's failures; it is never taken to do harm."""
        base = self.base(strength)
        return base + lift * max(CEILING - base, 0.0)


class SuccessModel(Protocol):
    """Anything that predicts success. Called in the request path, once a task: no I/O, never raises."""

    def outlook(self, features: Features, text: str) -> Outlook:
        """Predict; `text` is the excerpt that `features` were taken from."""
        ...


class PriorSuccess:
    """Beliefs before evidence.

    A base does an easy task nearly always (0.95, whatever its tier) and the hardest one rarely (0.30 on the weakest
    tier, 0.75 on the strongest), linearly between. With the default lift of 0.7, an adapter is ahead of every base at
    every difficulty.
    """

    EASY = 0.95
    WEAK_LOSS = 0.65
    STRONG_LOSS = 0.2

    def __init__(self, difficulty: DifficultyEstimator) -> None:
        self._difficulty = difficulty

    def outlook(self, features: Features, text: str) -> Outlook:
        """See the class."""
        difficulty = self._difficulty.estimate(features, text)
        return Outlook(difficulty, self.EASY - difficulty * self.WEAK_LOSS, self.EASY - difficulty * self.STRONG_LOSS)


class LearnedSuccess:
    """Outcomes as a fitted estimator has them; difficulty is the probability that the weakest tier fails."""

    def __init__(self, outcomes: OutcomeEstimator) -> None:
        self._outcomes = outcomes

    def outlook(self, features: Features, text: str) -> Outlook:
        """See the class."""
        weak, strong = self._outcomes.outcomes(features, text)
        return Outlook(1.0 - weak, weak, strong)

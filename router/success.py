"""How likely a candidate is to do a task well: the interface, and the documented prior that decides without cases."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from adapters_registry.model import AdapterVersion
from router.features import Features
from router.snapshot import BaseTier


class Option(NamedTuple):
    """What could answer: a tier alone, or with an adapter of the task's agent.

    `strength` is the tier's rank in [0, 1], `lift` the share of the base's failures that the adapter is taken to mend.
    """

    tier: BaseTier
    adapter: AdapterVersion | None
    strength: float
    lift: float


class SuccessModel(Protocol):
    """Anything that predicts success. Called in the request path, once a candidate: no I/O, never raises."""

    def probability(self, option: Option, difficulty: float, features: Features) -> float:
        """P(success) in [0, 1]."""
        ...


class PriorSuccess:
    """Beliefs before evidence.

    A base does an easy task nearly always (0.95, whatever its tier) and the hardest one rarely (0.30 on the weakest
    tier, 0.75 on the strongest), linearly between. An adapter mends `lift` of its base's failures on its agent's tasks,
    up to 0.97. With the default lift of 0.7 it is ahead of every base at every difficulty.
    """

    EASY = 0.95
    WEAK_LOSS = 0.65
    STRONG_GAIN = 0.45
    CEILING = 0.97

    def probability(self, option: Option, difficulty: float, features: Features) -> float:
        """See the class."""
        base = self.EASY - difficulty * (self.WEAK_LOSS - self.STRONG_GAIN * option.strength)
        if option.adapter is None:
            return base
        return base + option.lift * (self.CEILING - base)

"""How likely a candidate is to do a task well: the interface, and the documented prior that decides without cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from adapters_registry.model import AdapterVersion
from router.features import Features
from router.snapshot import BaseTier

CEILING = 0.97
"""success probability that an adapter lifts its base towards"""


class Option(NamedTuple):
    """What could answer: a tier alone, or with an adapter of the task's agent.

    `strength` is the tier's rank in [0, 1], `lift` the share of the base's failures that the adapter is taken to mend.
    """

    tier: BaseTier
    adapter: AdapterVersion | None
    strength: float
    lift: float


class SuccessModel(Protocol):
    """Anything that predicts success. Called in the request path, once a task: no I/O, never raises."""

    def probabilities(
        self, options: Sequence[Option], difficulty: float, features: Features, text: str
    ) -> Sequence[float]:
        """P(success) of each option, in [0, 1]; `text` is the excerpt that `features` were taken from."""
        ...


class PriorSuccess:
    """Beliefs before evidence.

    A base does an easy task nearly always (0.95, whatever its tier) and the hardest one rarely (0.30 on the weakest
    tier, 0.75 on the strongest), linearly between. An adapter mends `lift` of its base's failures on its agent's tasks,
    up to `CEILING`. With the default lift of 0.7 it is ahead of every base at every difficulty.
    """

    EASY = 0.95
    WEAK_LOSS = 0.65
    STRONG_GAIN = 0.45

    def probabilities(
        self, options: Sequence[Option], difficulty: float, features: Features, text: str
    ) -> Sequence[float]:
        """See the class."""
        weak = self.EASY - difficulty * self.WEAK_LOSS
        return [lifted(weak + difficulty * self.STRONG_GAIN * option.strength, option) for option in options]


def lifted(base: float, option: Option) -> float:
    """The option's probability, given that of its tier alone; an adapter is never taken to do harm."""
    if option.adapter is None or base >= CEILING:
        return base
    return base + option.lift * (CEILING - base)

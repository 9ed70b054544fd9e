"""Difficulty of a task in [0, 1]: the interface, and the documented rules that serve until one has been learned.

DAAO (arXiv 2509.11079) estimates difficulty from the query alone and spends effort accordingly. The rules here sum
saturating terms, one a feature, and squash the sum. Every weight is non-negative, so difficulty never falls when a
feature grows.
"""

from __future__ import annotations

import math
from typing import ClassVar, Protocol

from router.features import Features


class DifficultyEstimator(Protocol):
    """Anything that scores a task. Called in the request path: no I/O, well under a millisecond, never raises."""

    def estimate(self, features: Features, text: str) -> float:
        """Difficulty in [0, 1]; `text` is the excerpt that `features` were taken from."""
        ...


class RuleDifficulty:
    """Weights by hand. `WEIGHTS` maps a feature to (weight, half): it adds weight * x / (x + half)."""

    BIAS = -2.4
    WEIGHTS: ClassVar[dict[str, tuple[float, float]]] = {
        "chars": (3.6, 900.0),
        "turns": (0.3, 8.0),
        "tools": (0.5, 1.0),
        "system": (0.1, 1.0),
        "media": (0.6, 1.0),
        "code": (0.8, 16.0),
        "numbers": (0.8, 10.0),
        "maths": (0.6, 8.0),
        "constraints": (1.0, 4.0),
        "reasoning": (1.8, 2.0),
        "questions": (0.3, 3.0),
        "items": (0.6, 4.0),
        "long_words": (0.2, 0.3),
        "foreign": (0.3, 0.3),
    }

    def __init__(self) -> None:
        index = {name: position for position, name in enumerate(Features._fields)}
        self._terms = [(index[name], weight, half) for name, (weight, half) in self.WEIGHTS.items()]

    def estimate(self, features: Features, text: str) -> float:
        """The squashed sum; see `WEIGHTS`."""
        score = self.BIAS
        for position, weight, half in self._terms:
            if value := features[position]:
                score += weight * value / (value + half)
        return 1 / (1 + math.exp(-score))

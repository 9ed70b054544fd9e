"""Retrains that gain nothing, or something, with the questions' difficulty and the users' moods they would have."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from training.gate.bootstrap import paired_bootstrap
from training.gate.canary import decide
from training.gate.sequential import Rewarded, compare

LOOKS = 12
"""times that the worker looks at a canary before it ends"""


def difficulties(draw: Generator, rows: int) -> np.ndarray:
    """Chance of a right answer by question: most are easy or hopeless for every version."""
    return draw.beta(1.2, 0.5, rows)


def answers(draw: Generator, chances: np.ndarray, agree: float) -> tuple[np.ndarray, np.ndarray]:
    """Two versions' scores on the same questions: they agree on the share `agree` by more than chance."""
    one, other = (draw.random(chances.size) < chances for _ in range(2))
    same = draw.random(chances.size) < agree
    return one.astype(float), np.where(same, one, other).astype(float)


def rewarded(draw: Generator, name: str, requests: int, mean: float) -> list[Rewarded]:
    """Sessions of three or so requests; a session's user is pleased more or less easily than others."""
    left, sessions = requests, []
    while left:
        length = min(left, int(draw.geometric(1 / 3)))
        mood = draw.beta(4 * mean, 4 * (1 - mean))
        sessions += [Rewarded(f"{name}{left}", float(draw.random() < mood)) for _ in range(length)]
        left -= length
    return sessions


def canary(draw: Generator, requests: int, share: float, mean: float, gain: float) -> str:
    """Run a canary to its end, looked at now and then."""
    one = rewarded(draw, "a", requests, mean + gain)
    other = rewarded(draw, "b", round(requests * (1 - share) / share), mean)
    for look in range(1, LOOKS + 1):
        now = compare(one[: len(one) * look // LOOKS], other[: len(other) * look // LOOKS], requests)
        decision, _ = decide(now, requests, late=False)
        if decision != "continue":
            return decision
    raise AssertionError("a canary that has all its requests ends")


def passes(draw: Generator, champion: np.ndarray, candidate: np.ndarray) -> bool:
    """The gate's bound."""
    return paired_bootstrap(candidate - champion, seed=int(draw.integers(1 << 31))).lower > 0

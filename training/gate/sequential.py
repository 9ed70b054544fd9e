"""A comparison that may be looked at after every request without losing its error rate.

The asymptotic confidence sequence of Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, Time-uniform central limit theory
and asymptotic confidence sequences (Annals of Statistics 52(6), 2024, arXiv:2103.06476, equation 8), for the difference
of two means: with probability `1 - ERROR` it covers the true difference at all looks at once. Sessions are the unit,
because requests of one session are alike: variances are those of the sessions' sums about their arm's mean.
Each arm's variance is taken with one reward of 0 and one of 1 more (Agresti and Caffo, The American Statistician 54(4),
2000), so that twenty equal rewards do not count as certainty.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

ERROR = 0.05
MIN_SESSIONS = 20
"""sessions of either arm before anything is concluded: the sequence holds for large numbers"""


class Rewarded(NamedTuple):
    """One rewarded request: its session and its reward, 0 to 1."""

    session: str
    reward: float


@dataclass(frozen=True, slots=True)
class Arm:
    """What one version's rewards say. `variance` is that of the mean."""

    requests: int
    sessions: int
    mean: float
    variance: float

    @classmethod
    def of(cls, rewards: Sequence[Rewarded]) -> Arm:
        """From rewarded requests in any order."""
        if not rewards:
            return cls(0, 0, 0.0, 0.0)
        values = np.array([each.reward for each in rewards], dtype=np.float64)
        _, session = np.unique([each.session for each in rewards], return_inverse=True)
        sums = np.bincount(session, weights=values - values.mean())
        extra = values.mean() ** 2 + (1 - values.mean()) ** 2
        variance = (float(np.square(sums).sum()) + extra) / (values.size + 2) ** 2
        return cls(values.size, sums.size, float(values.mean()), variance)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"requests": self.requests, "sessions": self.sessions, "mean": round(self.mean, 4)}


@dataclass(frozen=True, slots=True)
class Difference:
    """Mean reward of `one` minus that of `other`, with the bounds at this look (None before `MIN_SESSIONS`)."""

    one: Arm
    other: Arm
    value: float
    low: float | None
    high: float | None

    @property
    def is_gain(self) -> bool:
        """Whether `one` is better beyond doubt."""
        return self.low is not None and self.low > 0

    @property
    def is_harm(self) -> bool:
        """Whether `one` is worse beyond doubt."""
        return self.high is not None and self.high < 0

    @property
    def text(self) -> str:
        """For a person."""
        means = f"{self.one.mean:.3f} over {self.one.requests} against {self.other.mean:.3f} over {self.other.requests}"
        if self.low is None or self.high is None:
            return f"rewards {means}: too few to tell"
        return f"rewards {means}: {self.value:+.3f}, surely in [{self.low:+.3f}, {self.high:+.3f}]"

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"one": self.one.to_dict(), "other": self.other.to_dict(), "low": self.low, "high": self.high}


def compare(one: Sequence[Rewarded], other: Sequence[Rewarded], expected: int) -> Difference:
    """Compare two arms now; the sequence is narrowest after about `expected` sessions of `one`."""
    return compare_arms(Arm.of(one), Arm.of(other), expected)


def compare_arms(one: Arm, other: Arm, expected: int) -> Difference:
    """`compare` on what the arms have come to."""
    value = one.mean - other.mean
    if min(one.sessions, other.sessions) < MIN_SESSIONS:
        return Difference(one, other, value, None, None)
    radius = math.sqrt(one.variance + other.variance) * _boundary(one.sessions, expected)
    return Difference(one, other, value, value - radius, value + radius)


def _boundary(count: int, expected: int) -> float:
    """Standard errors that the sequence reaches to either side after `count` units."""
    log_error = -2 * math.log(ERROR)
    rho2 = (log_error + math.log(log_error + 1)) / max(expected, 1)
    scaled = count * rho2 + 1
    return math.sqrt(2 * scaled / (scaled - 1) * math.log(math.sqrt(scaled) / ERROR))

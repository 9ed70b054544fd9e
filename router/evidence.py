"""What cases say of candidates: how far rewards were from what had been predicted, by band of difficulty.

Evidence corrects a prediction; it does not replace it. With n cases, rewards S and predictions E in a band, and N, S, E
over all bands, the correction of a band is

    R + (S_band - E_band - n_band * R) / (weight + n_band)        where R = (S - E) / (weight + N)

so it is 0 without cases, the mean residual of the band with many, and what the other bands say where the band has few.
Between the middles of bands it is linear in difficulty. A prediction so corrected is calibrated on the cases that were
counted: candidate by candidate and band by band, predictions and rewards have the same mean.

Bands are of the difficulty that the rules estimate, whichever router version decides: they must not move under the
cases counted in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

BANDS = 5
LEAST, MOST = 0.01, 0.99
WEIGHT = 20.0
EVERYONE = "*"
"""scope of what all may see; others are owners, API keys by name"""


class Tally(NamedTuple):
    """Cases of one candidate and agent in one band: their number, and the sums of rewards and of predictions."""

    cases: float
    reward: float
    expected: float


NO_CASES = Tally(0.0, 0.0, 0.0)
Tallies = Sequence[Tally]
"""of each band, the easiest first"""


def band_of(difficulty: float) -> int:
    """The band, 0 to BANDS - 1, of a difficulty in [0, 1]."""
    return min(int(difficulty * BANDS), BANDS - 1)


@dataclass(frozen=True, slots=True)
class Correction:
    """Of one candidate: what is added to its probability in the middle of each band, and of how many cases."""

    added: tuple[float, ...]
    cases: int

    @classmethod
    def of(cls, tallies: Tallies, weight: float) -> Correction:
        """See the module."""
        count = sum(each.cases for each in tallies)
        residual = sum(each.reward - each.expected for each in tallies)
        overall = residual / (weight + count)
        return cls(
            tuple(
                overall + (each.reward - each.expected - each.cases * overall) / (weight + each.cases)
                for each in tallies
            ),
            round(count),
        )

    def at(self, difficulty: float) -> float:
        """What is added at that difficulty."""
        place = min(max(difficulty * BANDS - 0.5, 0.0), BANDS - 1.0)
        below = min(int(place), BANDS - 2)
        share = place - below
        return self.added[below] * (1 - share) + self.added[below + 1] * share


class Evidence:
    """All that is known to one owner. Immutable; `tallies` maps (agent or "", candidate) to the tallies of its bands.

    A candidate is an adapter version by `name@version`, or a base by its public name.
    """

    __slots__ = ("_corrections",)

    def __init__(self, tallies: Mapping[tuple[str, str], Tallies] | None = None, weight: float = WEIGHT) -> None:
        self._corrections = {key: Correction.of(each, weight) for key, each in (tallies or {}).items()}

    def corrected(self, agent: str | None, candidate: str, probability: float, difficulty: float) -> tuple[float, int]:
        """The probability as the cases have it, and how many they are; `difficulty` is the rules'."""
        correction = self._corrections.get((agent or "", candidate))
        if correction is None:
            return probability, 0
        return min(max(probability + correction.at(difficulty), LEAST), MOST), correction.cases


NO_EVIDENCE = Evidence()

"""A share of calls for the strongest tier, held online: a threshold on what the strongest tier gains in utility.

The threshold moves after each call: up when the strongest tier answered, down when it did not, in the proportion that
makes the two cancel at the target (the online quantile of Gibbs and Candes, arXiv 2106.00170). It integrates what
happened, not what was wanted, so calls that a session or a budget decided are made up for by the others.

With a constant step the share's error over T calls is the way of the threshold over T steps. Steps are measured in
spreads of the gains, so that their scale does not matter, and begin large, because the way at first is the longest.
Simulated with normal gains (means -0.3 to 0.3, deviations 0.02 to 0.2) and targets of 5 to 90 %, the mean error is 0.8
points after 100 calls and 0.3 after 1,000, the largest 4 and 1.4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

STEP = 0.2
"""of the threshold, in spreads of the gain"""
FIRST_STEP = 4.0
FADING = 20
"""calls in which the first steps halve"""
SMOOTHING = 0.05
"""weight of the latest call in the running means"""
FIRST_SPREAD = 0.1
LEAST_SPREAD = 0.005
REACH = 8.0
"""spreads that the threshold may be from the mean gain: far enough for a share of nothing or all, and back soon"""


@dataclass(frozen=True, slots=True)
class Share:
    """The state: four numbers, immutable. `threshold` 0 is plain utility, where all begin."""

    threshold: float = 0.0
    centre: float = 0.0
    """running mean of the gains"""
    spread: float = FIRST_SPREAD
    """running mean of their distance from it"""
    calls: int = 0

    def after(self, call: ShareCall) -> Share:
        """The state once `call` has been decided."""
        spread = self.spread + SMOOTHING * (abs(call.gain - self.centre) - self.spread)
        step = max(STEP, FIRST_STEP / (1 + self.calls / FADING)) * max(spread, LEAST_SPREAD)
        threshold = self.threshold + step * (call.is_strong - call.target)
        centre = self.centre + SMOOTHING * (call.gain - self.centre)
        reach = REACH * max(spread, LEAST_SPREAD)
        return Share(min(max(threshold, centre - reach), centre + reach), centre, spread, self.calls + 1)


NO_CALLS = Share()


class ShareCall(NamedTuple):
    """One decision of a kind whose share is held. `key` is whose share it is: an owner's, over all agents or one."""

    key: tuple[str, str]
    target: float
    threshold: float
    gain: float
    """utility of the strongest tier, less that of the best other candidate"""
    is_strong: bool

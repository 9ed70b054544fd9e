"""Whether the loss is still healthy, and what becomes of the rate when it is not."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

SMOOTHING = 0.9
FAR = 3.0
"""times the best smoothed loss"""
SLACK = 0.5
"""nats on top: of a loss near zero, the threefold is noise"""
PATIENCE = 10
"""steps in a row above that"""
MAX_ROLLBACKS = 3
BACK_OFF = 0.1
CALM_CLIP = 0.3
"""of the gradient's norm after a rollback, as a share"""
FLOOR = 0.03
"""last rate as a share of the peak"""


class Unhealthy(Exception):
    """The loss or the gradient is not a number, or has been far above the best for a while."""


@dataclass
class Watch:
    """The smoothed loss. Its fields are the whole state."""

    smoothed: float | None = None
    best: float | None = None
    above: int = 0

    @property
    def healthy(self) -> bool:
        """Whether the present weights are worth keeping."""
        return self.above == 0

    def see(self, loss: float, gradient: float) -> None:
        """Note one step. Raises Unhealthy."""
        check_finite(loss, gradient)
        self.smoothed = loss if self.smoothed is None else SMOOTHING * self.smoothed + (1 - SMOOTHING) * loss
        self.best = self.smoothed if self.best is None else min(self.best, self.smoothed)
        limit = FAR * self.best + SLACK
        self.above = self.above + 1 if self.smoothed > limit else 0
        if self.above >= PATIENCE:
            raise Unhealthy(f"the loss has been above {limit:.2f} for {PATIENCE} steps, its best was {self.best:.2f}")


def check_finite(loss: float, gradient: float) -> None:
    """Raises Unhealthy if either is no number."""
    if not math.isfinite(loss) or not math.isfinite(gradient):
        raise Unhealthy(f"the loss is {loss}, the gradient's norm {gradient}")


@dataclass(frozen=True, slots=True)
class Pace:
    """The rate as a share of its peak: a linear rise, then a cosine down to FLOOR; a tenth after each rollback."""

    steps: int
    warmup: float
    rollbacks: int = 0
    resumed_at: int = 0

    def at(self, step: int) -> float:
        """Share of the peak rate at `step`, which counts from 0."""
        rise = max(1, round(self.steps * self.warmup))
        progress = max(0.0, (step - rise) / max(1, self.steps - rise))
        cosine = FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        warm = min(1.0, (step - self.resumed_at + 1) / rise)
        return cosine * warm * BACK_OFF**self.rollbacks

    @property
    def clip(self) -> float:
        """Share of the configured clipping norm."""
        return CALM_CLIP if self.rollbacks else 1.0

    def calmer(self, step: int) -> Pace:
        """The pace after a rollback to `step`."""
        return dataclasses.replace(self, rollbacks=self.rollbacks + 1, resumed_at=step)

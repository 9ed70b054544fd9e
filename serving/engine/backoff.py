"""How long to wait before an engine is started again, and when to give up."""

from __future__ import annotations

FIRST_S = 0.5
LONGEST_S = 30.0
STABLE_S = 60.0
MAX_FRUITLESS = 8


class Backoff:
    """Doubles from half a second to thirty; begins anew once an engine was ready for a minute."""

    def __init__(self) -> None:
        self._next_s = FIRST_S
        self._fruitless = 0

    @property
    def exhausted(self) -> bool:
        """Whether so many starts in a row ended before the engine was ready that another is pointless."""
        return self._fruitless >= MAX_FRUITLESS

    @property
    def fruitless(self) -> int:
        """Starts in a row that ended before the engine was ready."""
        return self._fruitless

    def after(self, ready_s: float | None) -> float:
        """Seconds to wait after a life in which the engine was ready for `ready_s` seconds, None for never."""
        self._fruitless = 0 if ready_s is not None else self._fruitless + 1
        if ready_s is not None and ready_s >= STABLE_S:
            self._next_s = FIRST_S
        delay = self._next_s
        self._next_s = min(2 * delay, LONGEST_S)
        return delay

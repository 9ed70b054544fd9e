"""How often each adapter has been asked for lately: the guess of what will be asked for next."""

from __future__ import annotations

from collections.abc import Callable

HALF_LIFE_S = 300.0
"""after so long a request counts half: a session's next turn comes sooner than that, an agent's rate is seen in it"""
LEAST = 0.5
"""less demand than this is none"""


class Demand:
    """Requests by engine name, each counted as 1 and fading. `clock` counts seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seen: dict[str, tuple[float, float]] = {}

    def note(self, name: str) -> None:
        """One request."""
        self._seen[name] = (self.of(name) + 1, self._clock())

    def of(self, name: str) -> float:
        """Requests of late."""
        count, at = self._seen.get(name, (0.0, 0.0))
        return float(count * 0.5 ** ((self._clock() - at) / HALF_LIFE_S))

    def forget(self, name: str) -> None:
        """Nobody is expected to ask for it again."""
        self._seen.pop(name, None)

    def ranked(self) -> list[str]:
        """What is in demand, most of all first; the rest is forgotten."""
        rates = {name: self.of(name) for name in self._seen}
        self._seen = {name: seen for name, seen in self._seen.items() if rates[name] >= LEAST}
        return sorted(self._seen, key=lambda name: rates[name], reverse=True)

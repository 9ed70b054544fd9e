"""Counting what a load generator saw."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from bench.http_client import Outcome


@dataclass(slots=True)
class Tally:
    """Outcomes inside the window `[begin, end)` of `perf_counter` times; `total` counts those outside too."""

    begin: float
    end: float = math.inf
    total: int = 0
    done: list[Outcome] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, outcome: Outcome, at: float) -> None:
        """Count `outcome`, which belongs to the window if `at` does."""
        self.total += 1
        if not self.begin <= at < self.end:
            return
        if outcome.error is None:
            self.done.append(outcome)
        else:
            self.errors[outcome.error] += 1

    def report(self, seconds: float) -> dict[str, Any]:
        """The numbers of a window `seconds` long; times in ms."""
        firsts = [done.first_event - done.intended for done in self.done if done.first_event is not None]
        return {
            "requests": len(self.done),
            "total_requests": self.total,
            "errors": dict(self.errors),
            "seconds": round(seconds, 3),
            "rate_per_s": round(len(self.done) / seconds, 1),
            "latency_ms": spread([done.ended - done.intended for done in self.done]),
            "ttft_ms": spread(firsts) if firsts else None,
        }


def spread(seconds: Sequence[float]) -> dict[str, float] | None:
    """Percentiles (nearest rank) in ms; None of nothing."""
    if not seconds:
        return None
    ordered = sorted(seconds)

    def rank(share: float) -> float:
        return round(ordered[max(0, math.ceil(share * len(ordered)) - 1)] * 1000, 3)

    return {"p50": rank(0.5), "p90": rank(0.9), "p99": rank(0.99), "max": rank(1.0)}

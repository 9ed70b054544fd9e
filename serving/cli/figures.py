"""Figures over many answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The value under which `percent` of `values` lie, interpolated between neighbours; None where there are none."""
    if not values:
        return None
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def accuracy(truth: Sequence[str], said: Sequence[str | None]) -> float:
    """Share of exact matches; an answer that never came (None) is wrong."""
    return sum(a == b for a, b in zip(truth, said, strict=True)) / len(truth) if truth else 0.0


def macro_f1(truth: Sequence[str], said: Sequence[str | None]) -> float:
    """Mean over the labels in `truth` of F1; what is no label counts as a miss and for no label's precision."""
    hits = Counter(a for a, b in zip(truth, said, strict=True) if a == b)
    of_truth, of_said = Counter(truth), Counter(said)
    scores = [2 * hits[label] / (of_truth[label] + of_said[label]) for label in of_truth]
    return sum(scores) / len(scores) if scores else 0.0

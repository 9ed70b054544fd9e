"""The paired bootstrap: how sure it is that a candidate is better on the same rows.

Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 15; Koehn, Statistical Significance Tests
for Machine Translation Evaluation (EMNLP 2004), for its paired use.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
ERROR = 0.025
"""how often a candidate that is no better passes, by the bound alone"""
BINS = 60
_CHUNK = 1 << 21
"""row indices that are drawn at once: 16 MB"""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """Mean difference, its one-sided lower and upper bounds, and the resampled means as a histogram."""

    mean: float
    lower: float
    upper: float
    counts: tuple[int, ...]
    edges: tuple[float, ...]
    error: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "mean": round(self.mean, 6),
            "lower": round(self.lower, 6),
            "upper": round(self.upper, 6),
            "error": self.error,
            "resamples": RESAMPLES,
        }


def paired_bootstrap(
    differences: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES, error: float = ERROR
) -> Bootstrap:
    """Resample the per-row differences (candidate minus reference, shape [rows], at least one).

    The bounds are the quantiles `error` and `1 - error` of the resampled means. The same rows and seed give the same.
    """
    rows = np.asarray(differences, dtype=np.float64)
    if rows.size == 0:
        raise ValueError("no rows to resample")
    means = _resampled_means(rows, np.random.default_rng(seed), resamples)
    lower, upper = np.quantile(means, (error, 1 - error))
    counts, edges = np.histogram(means, bins=min(BINS, np.unique(means).size))
    return Bootstrap(
        float(rows.mean()), float(lower), float(upper), tuple(counts.tolist()), tuple(edges.tolist()), error
    )


def _resampled_means(rows: NDArray[np.float64], draw: np.random.Generator, resamples: int) -> NDArray[np.float64]:
    """Means of resamples, shape [resamples].

    Rows that differ by the same amount need not be told apart: with few distinct values, as exact match gives, their
    counts are drawn at once, which takes a hundredth of the time.
    """
    values, counts = np.unique(rows, return_counts=True)
    if values.size <= 16:
        drawn = draw.multinomial(rows.size, counts / rows.size, size=resamples)
        return np.asarray(drawn @ values / rows.size)
    step = max(1, _CHUNK // rows.size)
    parts = [
        rows[draw.integers(0, rows.size, size=(min(step, resamples - start), rows.size))].mean(axis=1)
        for start in range(0, resamples, step)
    ]
    return np.concatenate(parts)

"""What a router is worth, as RouteLLM (arXiv 2406.18665) measures it, and whether its probabilities can be believed.

The gain of a row is strong outcome minus weak outcome. When the share c of rows with the highest scores goes to the
strong model, PGR(c) = (acc(c) - acc_weak) / (acc_strong - acc_weak) is the part of the whole gain that is had. APGR is
its mean over c in [0, 1], CPT(x) the least c with PGR(c) >= x. Rows of equal score are ordered at random, seeded.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]
CHUNK = 100
"""resamples at once: 100 of 14,000 rows take 11 MB"""


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


def ranking(score: Array, seed: int) -> Array:
    """Rows from the highest score to the lowest, ties at random."""
    order: Array = np.lexsort((np.random.default_rng(seed).random(len(score)), -score))
    return order


def pgr(gain: Array, order: Array) -> Array:
    """PGR at c = 0, 1/n, ..., 1; shape (n + 1,). NaN everywhere when both models are equally good."""
    had = np.concatenate([[0.0], np.cumsum(gain[order])])
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(had / had[-1])


def apgr(gain: Array, order: Array) -> float:
    """Area under the whole curve, by trapezoids."""
    curve = pgr(gain, order)
    return float((curve[1:] + curve[:-1]).mean() / 2)


def cpt(gain: Array, order: Array, part: float) -> float:
    """Least share of strong calls, in [0, 1], with which `part` of the gain is had; NaN when there is none to have."""
    had = pgr(gain, order) >= part
    return float(np.argmax(had) / len(gain)) if had.any() else math.nan


def resampled_apgr(
    gain: Array, orders: list[Array], *, seed: int, unit: Array | None = None, rounds: int = 1000
) -> Array:
    """APGR of several rankings over the same resamples of the rows; shape (rankings, rounds).

    A resample draws as many rows with replacement, or with `unit`, the number of each row's group, as many groups with
    all their rows: rows of a group are no independent evidence of what a new group will bring. What it drew of a row
    stays together in the ranking, which needs no sorting again.
    """
    rng = np.random.default_rng(seed)
    unit = np.arange(len(gain)) if unit is None else unit
    number = int(unit.max()) + 1
    found = []
    for start in range(0, rounds, CHUNK):
        drawn = rng.multinomial(number, np.full(number, 1 / number), size=min(CHUNK, rounds - start))
        found.append([_weighted_apgr(gain[order], drawn[:, unit[order]]) for order in orders])
    return np.concatenate(found, axis=1)


def interval(values: Array) -> Interval:
    """The middle 95 % of resampled values."""
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(float(low), float(high))


def ece(probability: Array, outcome: Array, *, bins: int = 15) -> float:
    """Expected calibration error over bins of equal width: mean distance of belief and truth, by rows."""
    place = np.minimum((probability * bins).astype(int), bins - 1)
    surplus = np.bincount(place, weights=probability - outcome, minlength=bins)
    return float(np.abs(surplus).sum() / len(probability))


def _weighted_apgr(gain: Array, drawn: Array) -> Array:
    """APGR where the i-th row of the ranking counts `drawn[:, i]` times."""
    had = gain * drawn
    after = np.cumsum(had, axis=1)
    # within a row's copies the curve is a straight line from what was had before to what is had after it
    area = ((after - had / 2) * drawn).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(area / (after[:, -1] * drawn.sum(axis=1)))

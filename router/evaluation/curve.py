"""Cost and quality of two tiers at once: what each way of choosing pays for each quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from router.evaluation.comparison import Comparison
from router.evaluation.metrics import Array, ranking
from router.learned import RouteRow

WEAK_PRICE, STRONG_PRICE = 0.24, 24.7
"""USD per million tokens of Mixtral-8x7B and GPT-4, as RouteLLM (arXiv 2406.18665) takes them"""
CHARS_A_TOKEN = 4.0
POINTS = 200
"""qualities between the tiers' own at which costs are compared"""


class Curve(NamedTuple):
    """USD per thousand tasks and share of right answers, from all on the weak tier to all on the strong one.

    Both have the shape (rows + 1,).
    """

    cost: Array
    quality: Array

    def cheapest(self, quality: Array) -> Array:
        """The least cost at which at least each quality is had; shape of `quality`."""
        reached = np.maximum.accumulate(self.quality)
        return np.asarray(self.cost[np.minimum(np.searchsorted(reached, quality - 1e-12), len(self.cost) - 1)])


def curves(comparison: Comparison, *, seed: int) -> Mapping[str, Curve]:
    """`utility` (the policy that is served, by the chosen estimator, at every exchange rate), `length` and `random`.

    A tier has one price for all tasks in the policy; what is paid grows with the length of the prompt.
    """
    rows, gain = comparison.rows, comparison.gain
    extra = np.array([len(row.prompt) for row in rows]) / CHARS_A_TOKEN * (STRONG_PRICE - WEAK_PRICE) / 1e6
    said = comparison.predictions[comparison.chosen]
    # strong where gain - lambda * (difference of the prices) > 0: as lambda falls, rows go up in the order of the gain
    orders = {
        "utility": ranking(said.strong - said.weak, seed),
        "length": ranking(extra, seed),
    }
    found = {name: _curve(rows, gain, extra, order) for name, order in orders.items()}
    ends = [0, -1]
    found["random"] = Curve(found["length"].cost[ends], found["length"].quality[ends])
    return found


def between(found: Mapping[str, Curve]) -> Array:
    """Qualities strictly between the tiers' own; shape (POINTS,)."""
    weak, strong = found["random"].quality
    return np.linspace(weak, strong, POINTS + 2)[1:-1]


def costs(found: Mapping[str, Curve]) -> dict[str, Array]:
    """What each way pays for the qualities of `between`; random mixing pays in proportion."""
    quality = between(found)
    paid = {name: curve.cheapest(quality) for name, curve in found.items() if name != "random"}
    random = found["random"]
    return paid | {"random": np.interp(quality, random.quality, random.cost)}


def _curve(rows: Sequence[RouteRow], gain: Array, extra: Array, order: Array) -> Curve:
    base = extra.sum() * WEAK_PRICE / (STRONG_PRICE - WEAK_PRICE)
    paid = base + np.concatenate([[0.0], np.cumsum(extra[order])])
    right = sum(row.weak for row in rows) + np.concatenate([[0.0], np.cumsum(gain[order])])
    return Curve(1000 * paid / len(rows), right / len(rows))

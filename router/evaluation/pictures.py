"""The pictures of a comparison, as PNG. Needs matplotlib."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from router.evaluation.comparison import ORACLE, SHARES, Comparison
from router.evaluation.contenders import REFERENCE
from router.evaluation.curve import Curve, between, costs
from router.evaluation.metrics import Array, pgr, ranking

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, FAINT, CHOSEN, OTHER, THIRD = "#30363d", "#9aa3ad", "#2f6fde", "#e08a1e", "#1a7f4b"
BINS = 12
DPI = 150
SIZE = (6.4, 4.2)
"""inches"""


def pictures(comparison: Comparison, found: Mapping[str, Curve], *, seed: int) -> dict[str, bytes]:
    """PNG files by name. Raises ImportError without matplotlib."""
    drawn: dict[str, Callable[[Axes], None]] = {
        "cost_quality.png": partial(_cost_quality, found=found),
        "gain.png": partial(_gain, comparison=comparison, seed=seed),
        "calibration.png": partial(_calibration, comparison=comparison),
        "shares.png": partial(_shares, realised=comparison.shares[comparison.chosen]),
    }
    return {name: _png(draw) for name, draw in drawn.items()}


def _png(draw: Callable[[Axes], None]) -> bytes:
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "font.size": 10,
        "axes.edgecolor": FAINT,
        "axes.labelcolor": INK,
        "xtick.color": INK,
        "ytick.color": INK,
    }
    with rc_context(style):
        figure = Figure(figsize=SIZE, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        axes.grid(color="#e6e9ec", linewidth=0.8)
        axes.set_axisbelow(True)
        draw(axes)
        axes.legend(frameon=False)
        out = io.BytesIO()
        figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def _cost_quality(axes: Axes, found: Mapping[str, Curve]) -> None:
    """Quality over cost; the ends are the tiers alone."""
    paid, quality = costs(found), 100 * between(found)
    for name, colour, label in (
        ("utility", CHOSEN, "utility policy"),
        ("length", OTHER, "longest first"),
        ("random", FAINT, "random mixing"),
    ):
        axes.plot(paid[name], quality, color=colour, label=label, linewidth=2)
    axes.plot(found["random"].cost, 100 * found["random"].quality, "o", color=INK, label="one tier alone", markersize=5)
    axes.set(xlabel="USD for 1,000 tasks", ylabel="right answers, %", title="What quality costs")


def _gain(axes: Axes, comparison: Comparison, seed: int) -> None:
    """PGR over the share of strong calls."""
    gain = comparison.gain
    share = 100 * np.linspace(0, 1, len(gain) + 1)
    lines = {"length": OTHER, REFERENCE: THIRD, comparison.chosen: CHOSEN}
    for name, colour in lines.items():
        if name in comparison.predictions:
            order = ranking(comparison.predictions[name].score, seed)
            label = f"{name} (APGR {comparison.figures[name].apgr:.3f})"
            axes.plot(share, 100 * pgr(gain, order), color=colour, label=label, linewidth=2)
    axes.plot([0, 100], [0, 100], color=FAINT, linestyle="--", label="random (0.5)")
    top = 100 * pgr(gain, ranking(gain, seed)).max()
    axes.set_title(f"Gain had by share of strong calls (the {ORACLE} reaches {top:.0f} %)", fontsize=11)
    axes.set(xlabel="calls to the strong tier, %", ylabel="part of the whole gain, %")


def _calibration(axes: Axes, comparison: Comparison) -> None:
    """What happened over what was believed, in bins of equally many rows."""
    said = comparison.predictions[comparison.chosen]
    axes.plot([0, 100], [0, 100], color=FAINT, linestyle="--", label="perfect")
    for tier, believed, colour in (("weak", said.weak, OTHER), ("strong", said.strong, CHOSEN)):
        outcome = np.array([getattr(row, tier) for row in comparison.rows])
        means = np.array([(believed[part].mean(), outcome[part].mean()) for part in _bins(believed)])
        axes.plot(*(100 * means.T), "o-", color=colour, label=f"{tier} tier", markersize=5)
    axes.set(xlabel="predicted to be right, %", ylabel="right, %", title=f"Calibration of {comparison.chosen}")


def _shares(axes: Axes, realised: Array) -> None:
    """Realised over wanted shares of strong calls."""
    wanted = 100 * np.array(SHARES)
    axes.fill_between(wanted, wanted - 3, wanted + 3, color=FAINT, alpha=0.3, label="within 3 points", linewidth=0)
    axes.plot(wanted, 100 * realised, "o-", color=CHOSEN, label="held-out rows", markersize=5)
    axes.set(xlabel="wanted, %", ylabel="realised, %", title="Share of strong calls, held online")


def _bins(values: Array) -> list[Array]:
    return [part for part in np.array_split(np.argsort(values, kind="stable"), BINS) if len(part)]

"""The report's pictures, as SVG inside the page."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from training.gate.bootstrap import Bootstrap
from training.gate.evaluate import Evaluation
from training.gate.report import BASE, CANDIDATE, CHAMPION, ROLES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = {CANDIDATE: "#2f6fde", CHAMPION: "#e08a1e", BASE: "#9aa3ad"}
GOOD, BAD, INK = "#1a7f4b", "#c0392b", "#30363d"


def svg(draw: Callable[[Axes, Any], None], data: Any, width: float, height: float) -> str:
    """An inline SVG of what `draw(axes, data)` draws; width and height in inches."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    # text stays text: the page is read on machines that have fonts of their own, and may be searched
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9, "svg.hashsalt": "gate"}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        draw(axes, data)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = out.getvalue()
    return text[text.index("<svg") :]


def draw_scores(axes: Axes, evaluations: Mapping[str, Evaluation]) -> None:
    """Bars by figure and model."""
    figures = [("task score", "task"), ("exact match", "exact_match"), ("F1", "f1"), ("valid format", "format_ok")]
    if any(each.scores.macro_f1 is not None for each in evaluations.values()):
        figures.insert(3, ("macro F1", "macro_f1"))
    roles = [role for role in ROLES if role in evaluations]
    width = 0.8 / len(roles)
    for number, role in enumerate(roles):
        values = [getattr(evaluations[role].scores, name) or 0.0 for _, name in figures]
        places = [place + (number - (len(roles) - 1) / 2) * width for place in range(len(figures))]
        bars = axes.bar(places, values, width * 0.92, label=role, color=COLOURS[role])
        axes.bar_label(bars, labels=[f"{100 * value:.0f}" for value in values], padding=2, fontsize=8, color=INK)
    axes.set_xticks(range(len(figures)), [title for title, _ in figures])
    axes.set_ylim(0, 1.12)
    axes.set_yticks([0, 0.5, 1], ["0", "50 %", "100 %"])
    axes.legend(frameon=False, ncols=len(roles), loc="lower left", bbox_to_anchor=(0, 1))


def draw_bootstrap(axes: Axes, bootstrap: Bootstrap) -> None:
    """The resampled differences, with zero and the lower bound."""
    edges = [100 * edge for edge in bootstrap.edges]
    widths = [max(right - left, 0.02) for left, right in pairwise(edges)]
    colours = [COLOURS[CANDIDATE] if left >= 0 else "#b8c4d6" for left in edges[:-1]]
    axes.bar(edges[:-1], bootstrap.counts, widths, align="edge", color=colours)
    axes.axvline(0, color=INK, linewidth=1)
    passed = bootstrap.lower > 0
    axes.axvline(100 * bootstrap.lower, color=GOOD if passed else BAD, linewidth=1.4, linestyle="--")
    axes.annotate(
        f"lower bound {100 * bootstrap.lower:+.1f}",
        (100 * bootstrap.lower, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 2),
        textcoords="offset points",
        color=GOOD if passed else BAD,
        ha="center",
        va="bottom",
    )
    axes.set_xlabel("difference in task score, points")
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def draw_labels(axes: Axes, changes: Sequence[tuple[str, int, int]]) -> None:
    """Bars of right answers gained by label; `changes` holds label, gain and rows."""
    names = [f"{label[:40]} ({rows})" for label, _, rows in changes]
    gained = [gain for _, gain, _ in changes]
    bars = axes.barh(names, gained, color=[GOOD if gain >= 0 else BAD for gain in gained], height=0.7)
    axes.bar_label(bars, labels=[f"{gain:+d}" if gain else "0" for gain in gained], padding=3, fontsize=8, color=INK)
    axes.axvline(0, color=INK, linewidth=0.8)
    axes.set_xlabel("right answers gained or lost (rows in brackets)")
    axes.margins(x=0.12)
    axes.locator_params(axis="x", integer=True)

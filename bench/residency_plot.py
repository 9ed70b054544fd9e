"""What the streams felt, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

FIGURES = {
    "gap_p99_ms": "99th percentile between two tokens, ms",
    "gap_max_ms": "longest gap, ms",
    "long_gaps_per_10k": "gaps over 50 ms per 10,000 tokens",
    "probe_first_p95_ms": "first token of a probe, p95, ms",
}


def draw(figures: dict[str, Any], to: Path) -> None:
    """A bar for each tier, contestant and load, a dot for each round. Draws nothing if `beside` was not measured."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    columns = [
        (contestant, f"{contestant}\n{tier}\n{load}", rounds)
        for tier, contestants in figures.get("beside", {}).items()
        for contestant, loads in contestants.items()
        for load, rounds in loads.items()
    ]
    if not columns:
        return
    figure, axes = pyplot.subplots(1, len(FIGURES), figsize=(4 * len(FIGURES), 3.6))
    for axis, (name, title) in zip(axes, FIGURES.items(), strict=True):
        for place, (contestant, _, rounds) in enumerate(columns):
            values = sorted(one[name] for one in rounds)
            colour = "tab:blue" if contestant == "ours" else "tab:gray"
            axis.bar(place, values[len(values) // 2], color=colour, alpha=0.7)
            axis.plot([place] * len(values), values, "k.", markersize=4)
        axis.set_xticks(range(len(columns)), [label for _, label, _ in columns], fontsize=7)
        axis.set_title(title, fontsize=9)
    figure.tight_layout()
    to.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(to, dpi=110)
    pyplot.close(figure)

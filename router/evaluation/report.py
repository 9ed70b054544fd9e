"""The report of a comparison: its figures as JSON, its pictures as PNG, and one page that holds them all."""

from __future__ import annotations

import base64
import html
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from router.evaluation.comparison import SHARES, Comparison, Figures
from router.evaluation.curve import Curve, between, costs, curves
from router.evaluation.pictures import pictures

PAGE, DOCUMENT = "report.html", "report.json"
CAPTIONS = {
    "cost_quality.png": "From the weak tier alone to the strong one alone; further left is cheaper.",
    "gain.png": "Rows in the order of the score; the strong tier gets the first ones.",
    "calibration.png": "Bins of equally many held-out rows.",
    "shares.png": "Held-out rows in random order, at a router that holds the share as it does when serving.",
}
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #30363d; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .3rem .9rem; text-align: right; border-bottom: 1px solid #e6e9ec; }
th:first-child, td:first-child { text-align: left; }
tr.chosen { font-weight: 600; background: #eef4ff; }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(26rem, 1fr)); gap: 1.5rem; }
figure { margin: 0; } img { width: 100%; } figcaption { font-size: 13px; color: #6b747d; }
"""


def summary(comparison: Comparison) -> dict[str, Any]:
    """What `router eval --json` prints."""
    return {
        "rows": len(comparison.rows),
        "estimators": {name: _line(figures) for name, figures in comparison.figures.items()},
        "chosen": comparison.chosen,
    }


def details(comparison: Comparison, found: Mapping[str, Curve]) -> dict[str, Any]:
    """The summary, the paired intervals, the realised shares, and the costs at some qualities."""
    quality, paid = between(found), costs(found)
    some = np.linspace(0, len(quality) - 1, 11).astype(int)
    return {
        **summary(comparison),
        "over_tfidf": {
            name: [_rounded(bound) for bound in figures.over_reference]
            for name, figures in comparison.figures.items()
            if figures.over_reference is not None
        },
        "strong_share": {
            name: dict(zip(map(str, SHARES), np.round(shares, 4).tolist(), strict=True))
            for name, shares in comparison.shares.items()
        },
        "cost_quality": {
            "cheaper_than_random_everywhere": bool((paid["utility"] < paid["random"]).all()),
            "cheaper_than_length_everywhere": bool((paid["utility"] < paid["length"]).all()),
            "quality": np.round(quality[some], 4).tolist(),
            "usd_per_1000": {name: np.round(each[some], 3).tolist() for name, each in paid.items()},
        },
    }


def write_report(comparison: Comparison, folder: Path, *, seed: int) -> Path:
    """Write all files to `folder` and return the page. Raises ImportError without matplotlib, and OSError."""
    found = curves(comparison, seed=seed)
    drawn = pictures(comparison, found, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    for name, picture in drawn.items():
        (folder / name).write_bytes(picture)
    (folder / DOCUMENT).write_text(json.dumps(details(comparison, found), indent=2) + "\n", encoding="utf-8")
    page = folder / PAGE
    page.write_text(_page(comparison, drawn), encoding="utf-8")
    return page


def _line(figures: Figures) -> dict[str, Any]:
    return {
        "apgr": _rounded(figures.apgr),
        "apgr_ci": [_rounded(bound) for bound in figures.apgr_ci],
        "cpt50": _rounded(figures.cpt50),
        "cpt80": _rounded(figures.cpt80),
        "ece": _rounded(figures.ece),
        "p50_ms": _rounded(figures.p50_ms),
        "p99_ms": _rounded(figures.p99_ms),
    }


def _rounded(value: float | None) -> float | None:
    """None also for what is not a number, which JSON does not know: tiers that are equally good have no APGR."""
    return None if value is None or math.isnan(value) else round(value, 4)


def _page(comparison: Comparison, drawn: Mapping[str, bytes]) -> str:
    """HTML that needs no other file."""
    heads = "".join(f"<th>{head}</th>" for head in ("estimator", *_line(next(iter(comparison.figures.values())))))
    rows = []
    for name, figures in comparison.figures.items():
        values = [
            " to ".join(map(str, value)) if isinstance(value, list) else value for value in _line(figures).values()
        ]
        cells = "".join(f"<td>{'' if value is None else value}</td>" for value in values)
        chosen = ' class="chosen"' if name == comparison.chosen else ""
        rows.append(f"<tr{chosen}><td>{html.escape(name)}</td>{cells}</tr>")
    shown = "".join(
        f'<figure><img alt="{name}" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'
        f"<figcaption>{CAPTIONS[name]}</figcaption></figure>"
        for name, picture in drawn.items()
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Router evaluation</title><style>{_STYLE}</style>'
        f"<h1>Router evaluation</h1><p>{len(comparison.rows):,} held-out rows; chosen on training rows: "
        f"<b>{html.escape(comparison.chosen)}</b>.</p>"
        f"<table><tr>{heads}</tr>{''.join(rows)}</table>"
        f'<div class="pictures">{shown}</div></html>\n'
    )

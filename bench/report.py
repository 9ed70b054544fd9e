"""The one form of all results: a JSON object on stdout, bars that are met or not, a table for people on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from bench.environment import environment

TABLE_WIDTH = 120
"""columns where stderr is not a terminal"""


@dataclass(frozen=True, slots=True)
class Bar:
    """A number that has to be reached. `measured` None means that it could not be measured, so it is not met."""

    name: str
    measured: float | None
    limit: float
    unit: str
    bound: Literal["at most", "at least"]

    @property
    def met(self) -> bool:
        """Whether `measured` is on the right side of `limit`."""
        if self.measured is None:
            return False
        return self.measured <= self.limit if self.bound == "at most" else self.measured >= self.limit

    def as_json(self) -> dict[str, Any]:
        """The bar as results hold it."""
        return {
            "name": self.name,
            "measured": self.measured,
            "bound": self.bound,
            "limit": self.limit,
            "unit": self.unit,
            "met": self.met,
        }


def result(
    bench: str, settings: Mapping[str, Any], measurements: Mapping[str, Any], bars: Sequence[Bar]
) -> dict[str, Any]:
    """One result, as `bench/results/README.md` describes it."""
    return {
        "bench": bench,
        **environment(),
        "settings": dict(settings),
        "bars": [bar.as_json() for bar in bars],
        "measurements": dict(measurements),
    }


def publish(outcome: Mapping[str, Any], tables: Sequence[Table], out: Path | None) -> None:
    """JSON to stdout and to `out` if given; tables to stderr, the bars last if there are any."""
    print(json.dumps(outcome, indent=2))
    if out is not None:
        save(outcome, out)
    console = Console(file=sys.stderr, width=None if sys.stderr.isatty() else TABLE_WIDTH)
    bars = [bars_table(outcome["bars"])] if outcome["bars"] else []
    for table in (*tables, *bars):
        console.print(table)


def save(outcome: Mapping[str, Any], out: Path) -> None:
    """Write a result as `bench/results` holds them."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(outcome, indent=2) + "\n", encoding="utf-8")


def say(what: str) -> None:
    """How far it is, for who waits."""
    print(what, file=sys.stderr, flush=True)


def bars_table(bars: Sequence[Mapping[str, Any]]) -> Table:
    """The bars, a line each."""
    table = Table(title="bars", title_justify="left")
    for heading in ("what", "measured", "must be", "met"):
        table.add_column(heading, justify="left" if heading == "what" else "right")
    for bar in bars:
        measured = "-" if bar["measured"] is None else f"{bar['measured']:g} {bar['unit']}"
        must = f"{bar['bound']} {bar['limit']:g} {bar['unit']}"
        table.add_row(bar["name"], measured, must, "[green]yes[/]" if bar["met"] else "[red]no[/]")
    return table

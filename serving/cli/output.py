"""What commands print: one JSON document, or text for a person; coloured and fitted only on a terminal."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_PIPE_WIDTH = 100_000
"""width where no terminal is: lines are never folded or cut for programs that read them"""

GOOD, BAD, FAINT = "green", "red", "dim"
STATE_STYLES = {
    "ready": GOOD,
    "champion": GOOD,
    "warm": GOOD,
    "failed": BAD,
    "retired": FAINT,
    "absent": FAINT,
    "none": FAINT,
    "starting": "yellow",
    "restarting": "yellow",
    "loading": "yellow",
    "staging": "yellow",
    "draining": "yellow",
    "canary": "yellow",
    "cold": "yellow",
    "fallback": "yellow",
}


def safe(text: str) -> str:
    """`text` without control characters, which a model or a server could steer the terminal with."""
    return _UNSAFE.sub("", text)


class Output:
    """Where a command prints. With `as_json`, `show` prints the document alone and everything else is silent."""

    def __init__(self, as_json: bool = False) -> None:
        self.as_json = as_json
        self.console = _console(stderr=False, quiet=as_json)
        self.aside = _console(stderr=True, quiet=as_json)
        """for what is not the result: progress, remarks"""

    @property
    def is_terminal(self) -> bool:
        """Whether a person is looking."""
        return self.console.is_terminal

    def json(self, document: Any) -> None:
        """Print the document, if that is asked for."""
        if self.as_json:
            sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n")

    def line(self, text: str, style: str = "") -> None:
        """Print one line for a person."""
        self.console.print(Text(safe(text), style=style))

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, title: str | None = None) -> None:
        """Print a table; a column whose header begins with `>` is aligned to the right."""
        table = Table(
            title=title,
            title_justify="left",
            title_style="bold",
            box=box.SIMPLE_HEAD if self.is_terminal else None,
            pad_edge=False,
            collapse_padding=True,
            header_style="bold",
        )
        for column in columns:
            right = column.startswith(">")
            table.add_column(column.lstrip(">"), justify="right" if right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(cell(value) for value in row))
        self.console.print(table)

    def fields(self, pairs: Sequence[tuple[str, Any]]) -> None:
        """Print names and values, one pair a line."""
        table = Table.grid(padding=(0, 2))
        table.add_column(style=FAINT)
        table.add_column(overflow="fold")
        for name, value in pairs:
            table.add_row(name, cell(value))
        self.console.print(table)

    def gap(self) -> None:
        """An empty line before a table; on a terminal the table brings its own."""
        if not self.is_terminal:
            self.console.print()

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """A spinner with the time it takes, on a terminal."""
        if not self.aside.is_terminal:
            yield
            return
        from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        with Progress(*columns, console=self.aside, transient=True) as progress:
            progress.add_task(safe(what), total=None)
            yield


def cell(value: Any) -> Text:
    """A value as a table shows it: `-` for nothing, states in their colour."""
    if isinstance(value, Text):
        return value
    if value is None or value == "":
        return Text("-", style=FAINT)
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    if isinstance(value, (list, tuple)):
        return Text(safe(", ".join(map(str, value)))) if value else Text("-", style=FAINT)
    text = safe(f"{value:.3f}" if isinstance(value, float) else str(value))
    return Text(text, style=STATE_STYLES.get(text, ""))


def megabytes(size: int) -> str:
    """Bytes for a person."""
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"


def _console(*, stderr: bool, quiet: bool) -> Console:
    console = Console(stderr=stderr, quiet=quiet, highlight=False, markup=True, emoji=False)
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console

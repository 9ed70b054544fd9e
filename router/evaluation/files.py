"""Tables of tasks from CSV files, plain or gzip."""

from __future__ import annotations

import csv
import gzip
from collections.abc import Iterator, Sequence
from pathlib import Path

from router.learned import RouteRow

OUT_OF_SCOPE = "oos"
"""in the column `agent`: no agent's task"""


class UnreadableTable(ValueError):
    """The file is no table of the columns asked for. The message is one line that names the file."""


def read_routes(path: Path, group: str | None = None) -> list[RouteRow]:
    """Rows with the columns prompt, weak_correct and strong_correct (0 to 1), and the one that `group` names.

    Raises UnreadableTable.
    """
    columns = ("prompt", "weak_correct", "strong_correct", *([group] if group else []))
    rows = []
    for line, (prompt, weak, strong, *rest) in _read(path, columns):
        kind = rest[0] if rest else None
        rows.append(RouteRow(prompt, _outcome(path, line, weak), _outcome(path, line, strong), kind))
    return rows


def read_agents(path: Path) -> tuple[list[str], list[str]]:
    """Texts and their agents: the columns text and agent. Raises UnreadableTable."""
    rows = [values for _, values in _read(path, ("text", "agent"))]
    return [text for text, _ in rows], [agent.strip() for _, agent in rows]


def _read(path: Path, columns: Sequence[str]) -> Iterator[tuple[int, list[str]]]:
    """Line numbers and the columns' values. Raises UnreadableTable, also for a table without rows."""
    csv.field_size_limit(1 << 24)
    opened = gzip.open if path.suffix == ".gz" else open
    found = False
    try:
        with opened(path, "rt", newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            if missing := [column for column in columns if column not in (reader.fieldnames or ())]:
                raise UnreadableTable(f"{path} lacks the column '{missing[0]}'")
            for row in reader:
                if any(row[column] is None for column in columns):
                    raise UnreadableTable(f"{path}, line {reader.line_num}: too few columns")
                found = True
                yield reader.line_num, [row[column] for column in columns]
    except OSError as error:  # also a file that is no gzip
        raise UnreadableTable(f"{path}: {error.strerror or error}") from None
    except (EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableTable(f"{path} is no CSV file: {error}") from None
    if not found:
        raise UnreadableTable(f"{path} has no rows")


def _outcome(path: Path, line: int, value: str) -> float:
    try:
        outcome = float(value)
    except ValueError:
        outcome = -1.0
    if not 0 <= outcome <= 1:
        raise UnreadableTable(f"{path}, line {line}: '{value[:20]}' is no outcome between 0 and 1")
    return outcome

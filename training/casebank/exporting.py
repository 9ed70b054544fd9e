"""From cases to a file that gives them back when it is imported."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from training.casebank.case import Split
from training.casebank.errors import CaseInvalid, ImportFailed
from training.casebank.formats import Format, format_named, row_of

if TYPE_CHECKING:
    from training.casebank.bank import CaseBank

_COMMON = ("tools", "reward", "split", "session", "user_id", "episode", "task_type")


@dataclass(frozen=True, slots=True)
class ExportReport:
    """What was written, and how many cases the format had no place for."""

    file: str
    agent: str
    format: str
    written: int
    left_out: int

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)


def export_file(
    bank: CaseBank, path: Path, form: str, agent: str, *, split: Split | None, min_reward: float | None
) -> ExportReport:
    """See `CaseBank.export_file`."""
    chosen = format_named(form)
    written = left_out = 0
    with _new_file(path) as text:
        write = _csv_writer(text, chosen, path) if _delimiter(path) else _json_writer(text)
        for case in bank.cases(agent, split):
            if min_reward is not None and (case.reward is None or case.reward < min_reward):
                continue
            try:
                write(row_of(chosen, case))
                written += 1
            except CaseInvalid:
                left_out += 1
    return ExportReport(str(path), agent, chosen.name, written, left_out)


@contextmanager
def _new_file(path: Path) -> Iterator[IO[str]]:
    """Written beside, and in place only when it is whole."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as raw:
            binary = gzip.GzipFile(path.stem, "wb", fileobj=raw, mtime=0) if path.suffix == ".gz" else raw
            with io.TextIOWrapper(binary, encoding="utf-8", newline="") as text:
                yield text
        temporary.replace(path)
    except OSError as error:
        raise ImportFailed(f"{path}: {error.strerror or error}") from None
    finally:
        temporary.unlink(missing_ok=True)


def _delimiter(path: Path) -> str:
    return "," if ".csv" in path.suffixes else "\t" if ".tsv" in path.suffixes else ""


def _json_writer(text: IO[str]) -> Any:
    return lambda row: text.write(json.dumps(row, ensure_ascii=False) + "\n")


def _csv_writer(text: IO[str], form: Format, path: Path) -> Any:
    """Columns are those of the format, and after them all that any case may tell."""
    columns = [*form.written, *_COMMON]
    writer = csv.DictWriter(text, columns, delimiter=_delimiter(path), restval="", lineterminator="\n")
    writer.writeheader()
    return lambda row: writer.writerow(
        {
            name: json.dumps(value, ensure_ascii=False) if isinstance(value, (list, dict)) else value
            for name, value in row.items()
        }
    )

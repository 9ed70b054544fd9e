"""From a file to cases: read and signed first, outside of any transaction, then written in one."""

from __future__ import annotations

import pickle
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from training.casebank.case import Case
from training.casebank.errors import CaseInvalid, ImportFailed
from training.casebank.files import Row, read_rows
from training.casebank.formats import Format, cases_of, format_named, guess
from training.casebank.ids import new_id
from training.casebank.tables import ImportRow
from training.casebank.writing import CHUNK, Prepared

if TYPE_CHECKING:
    from training.casebank.bank import CaseBank

MAX_PROBLEMS = 1000
"""rows of which the reason is told; the others are counted"""
_IN_MEMORY = 64 << 20

OnProgress = Callable[[str, float], None]
"""told the stage ("reading", "writing") and the share of it that is done, 0 to 1"""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a row was left out. `line` is where it begins, from 1 on."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did. `cases` counts what the good rows gave: added, and known already (`duplicates`)."""

    id: str
    file: str
    agent: str
    format: str
    rows: int
    cases: int
    added: int
    duplicates: int
    bad: int
    problems: tuple[Problem, ...] = field(default=())
    dry_run: bool = False
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)


class _DryRun(Exception):
    """Undoes the transaction of an import that was only tried."""


def import_file(
    bank: CaseBank,
    path: Path,
    form: str | None,
    agent: str,
    *,
    dry_run: bool = False,
    on_progress: OnProgress | None = None,
) -> ImportReport:
    """See `CaseBank.import_file`."""
    began = time.monotonic()
    reading = _Reading(path, None if form is None else format_named(form), agent, on_progress)
    import_id = new_id()
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as spool:
        sizes = [_keep(spool, bank.prepare(_of_import(chunk, import_id))) for chunk in _chunks(reading.cases())]
        spool.seek(0)
        added, duplicates = _write(bank, spool, sizes, reading, import_id, dry_run=dry_run)
    return ImportReport(
        import_id,
        str(path),
        agent,
        reading.format_name,
        reading.rows,
        sum(sizes),
        added,
        duplicates,
        reading.bad,
        tuple(reading.problems),
        dry_run,
        round(time.monotonic() - began, 3),
    )


class _Reading:
    """One pass over a file, and what was found."""

    def __init__(self, path: Path, form: Format | None, agent: str, on_progress: OnProgress | None) -> None:
        self.rows = self.bad = 0
        self.problems: list[Problem] = []
        self.path = path
        self.agent = agent
        self._format = form
        self._on_progress = on_progress

    @property
    def format_name(self) -> str:
        """The format, given or guessed."""
        return self._format.name if self._format else ""

    def progress(self, stage: str, share: float) -> None:
        """Tell how far it is."""
        if self._on_progress is not None:
            self._on_progress(stage, share)

    def cases(self) -> Iterator[Case]:
        """The cases of the good rows. Raises ImportFailed, also when the columns are not the format's."""
        for row in self._read():
            self.rows += 1
            if row.values is None:
                self._leave_out(row.line, row.problem)
                continue
            try:
                yield from cases_of(self._fitting(row), row.values, self.agent)
            except CaseInvalid as error:
                self._leave_out(row.line, error.message)
        if not self.rows:
            raise ImportFailed(f"{self.path} holds no rows")

    def _read(self) -> Iterator[Row]:
        if not self.path.is_file():
            raise ImportFailed(f"{self.path} is no file")
        size = max(1, self.path.stat().st_size)
        return read_rows(self.path, lambda done: self.progress("reading", min(1.0, done / size)))

    def _fitting(self, row: Row) -> Format:
        values = row.values or {}
        if self._format is None:
            self._format = guess(values)
        if self.rows == 1 + self.bad and not self._format.fits(values):  # the first row that could be read
            needed = " and ".join("/".join(names) for names in self._format.columns)
            has = ", ".join(map(str, values))
            raise ImportFailed(f"{self.path}: format {self._format.name} needs {needed}, but the columns are {has}")
        return self._format

    def _leave_out(self, line: int, reason: str) -> None:
        self.bad += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(Problem(line, " ".join(reason.split())))


def _of_import(cases: list[Case], import_id: str) -> list[Case]:
    return [replace(case, import_id=import_id) for case in cases]


def _keep(spool: IO[bytes], prepared: list[Prepared]) -> int:
    pickle.dump(prepared, spool, pickle.HIGHEST_PROTOCOL)
    return len(prepared)


def _write(
    bank: CaseBank, spool: IO[bytes], sizes: list[int], reading: _Reading, import_id: str, *, dry_run: bool
) -> tuple[int, int]:
    added = duplicates = 0
    with suppress(_DryRun), bank.database.write() as session:
        for done, _size in enumerate(sizes, 1):
            placed = bank.place(session, pickle.load(spool))  # noqa: S301 - this process wrote it just now
            added, duplicates = added + len(placed.ids), duplicates + placed.duplicates
            reading.progress("writing", done / len(sizes))
        if dry_run:
            raise _DryRun
        if added:
            session.add(
                ImportRow(
                    id=import_id,
                    created_at=datetime.now(UTC),
                    agent=reading.agent,
                    file=reading.path.name,
                    format=reading.format_name,
                    rows=reading.rows,
                    added=added,
                    duplicates=duplicates,
                    bad=reading.bad,
                )
            )
    return added, duplicates


def _chunks(cases: Iterator[Case]) -> Iterator[list[Case]]:
    while chunk := list(islice(cases, CHUNK)):
        yield chunk

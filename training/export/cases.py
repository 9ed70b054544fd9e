"""Cases that an export is judged on: a conversation, and the answer that the adapter was taught for it."""

from __future__ import annotations

import csv
import gzip
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from configs import embedded
from training.export.errors import ExportRefused

SEED = 0
_GZIP_MAGIC = b"\x1f\x8b"


@dataclass(frozen=True)
class ExportCase:
    """`messages` as OpenAI has them; the last is what is answered."""

    messages: tuple[Mapping[str, Any], ...]
    answer: str

    @classmethod
    def of_text(cls, text: str, answer: str) -> ExportCase:
        """A text as the only user message."""
        return cls(({"role": "user", "content": text},), answer)


@dataclass(frozen=True)
class CaseSet:
    """Cases and where they came from.

    `labelled` tells that answers repeat as labels do, so that an exact match says something.
    """

    source: str
    cases: tuple[ExportCase, ...]
    labelled: bool

    @classmethod
    def of(cls, source: str, cases: Iterable[ExportCase]) -> CaseSet:
        """A set that finds out whether its answers are labels."""
        found = tuple(cases)
        return cls(source, found, 2 * len({case.answer for case in found}) <= len(found))

    def sample(self, limit: int) -> CaseSet:
        """At most `limit` cases, drawn with a fixed seed: files are often sorted by label."""
        if limit >= len(self.cases):
            return self
        chosen = random.Random(SEED).sample(self.cases, limit)  # noqa: S311 - a sample
        return replace(self, cases=tuple(chosen))


def read_cases(file: Path) -> CaseSet:
    """The cases of a CSV or JSONL file, gzip read as it is. Raises ExportRefused.

    A CSV has the columns `text` and `label`, and of those with a column `split` the rows with `test` or `holdout`
    count; a JSONL file is as a dataset holds it, with `messages` and `completion`.
    """
    try:
        with file.open("rb") as raw:
            opener = gzip.open if raw.read(2) == _GZIP_MAGIC else open
        with opener(file, "rt", encoding="utf-8", newline="") as lines:
            cases = _from_jsonl(lines) if ".jsonl" in file.suffixes else _from_csv(csv.DictReader(lines))
    except (OSError, EOFError) as error:
        raise ExportRefused(f"cannot read {file}: {getattr(error, 'strerror', None) or error}") from None
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise ExportRefused(f"{file} holds no cases: {error}") from None
    if not cases:
        raise ExportRefused(f"{file} holds no cases")
    return CaseSet.of(file.name, cases)


def demo_cases(agent: str) -> CaseSet | None:
    """The held-out cases of a demo agent."""
    file = embedded.holdout(agent)
    return replace(read_cases(file), source=f"held-out demo cases of {agent}") if file.is_file() else None


def general_cases() -> CaseSet:
    """The general set: of use where an agent has no cases of its own."""
    rows = [json.loads(line) for line in embedded.GENERAL_SET.read_text(encoding="utf-8").splitlines()]
    cases = (ExportCase.of_text(row["question"], row["answer"]) for row in rows)
    return CaseSet.of("general questions (the agent has no held-out cases)", cases)


def conversation_cases(rows: Iterable[tuple[Sequence[Mapping[str, Any]], str]], source: str) -> CaseSet:
    """Cases of (messages, answer); those without an answer are left out."""
    return CaseSet.of(source, (ExportCase(tuple(messages), answer) for messages, answer in rows if answer))


def _from_csv(rows: csv.DictReader[str]) -> list[ExportCase]:
    columns = rows.fieldnames or ()
    if missing := {"text", "label"} - set(columns):
        raise ValueError(f"no column {' and no column '.join(sorted(missing))}")
    wanted = {"test", "holdout"}
    return [
        ExportCase.of_text(row["text"], row["label"].strip())
        for row in rows
        if row["text"] and row["label"] and ("split" not in columns or row["split"] in wanted)
    ]


def _from_jsonl(lines: Iterable[str]) -> list[ExportCase]:
    rows = [json.loads(line) for line in lines if line.strip()]
    return [ExportCase(tuple(row["messages"]), str(row["completion"])) for row in rows if row["completion"]]

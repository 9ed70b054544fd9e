"""What a model is judged on: rows of a frozen holdout, the general questions, suites of one's own.

Suites are JSONL files whose rows hold `messages` or `prompt`, and one of `answer` (with `accept` the strings that a
right answer contains one of), `pattern` (a regular expression that the answer must match somewhere) and `json_schema`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from configs.embedded import GENERAL_SET
from training.dataset.general import is_replayed
from training.gate.errors import RowsInvalid

HOLDOUT = "holdout.jsonl"
TRAIN = "train.jsonl"
GENERAL = "general"
CLASSIFICATION = "classification"
MAX_LABEL = 80
"""characters of the longest answer that may be a label"""


@dataclass(frozen=True, slots=True)
class Row:
    """One question. `target` is the right answer, empty where only `pattern` or `schema` judge.

    `accept` holds strings of which a right answer contains one, whatever its case.
    """

    id: str
    messages: tuple[Mapping[str, Any], ...]
    target: str = ""
    task_type: str = ""
    tools: tuple[Mapping[str, Any], ...] = ()
    accept: tuple[str, ...] = ()
    pattern: re.Pattern[str] | None = None
    schema: Mapping[str, Any] | None = None

    @property
    def question(self) -> str:
        """Text of the last message, for people."""
        content = self.messages[-1].get("content")
        return content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)


def read_holdout(folder: Path) -> list[Row]:
    """The frozen holdout of a dataset's folder, without rows of general replay. Raises RowsInvalid."""
    rows = [_from_dataset(entry, where) for where, entry in _entries(folder / HOLDOUT)]
    return [row for row in rows if row.task_type != GENERAL]


def known_labels(folder: Path, rows: Sequence[Row]) -> frozenset[str]:
    """The labels of a classification task: all answers of the holdout and of the training rows."""
    labels = {row.target for row in rows}
    if (folder / TRAIN).is_file():
        found = ((entry.get("completion"), entry.get("task_type")) for _, entry in _entries(folder / TRAIN))
        labels |= {text for text, kind in found if isinstance(text, str) and kind != GENERAL}
    return frozenset(label.strip() for label in labels)


def read_general(path: Path | None = None) -> list[Row]:
    """General questions: `question`, `answer`, `accept`. Raises RowsInvalid.

    By default the package's, without those that may be replayed in training.
    """
    rows: list[Row] = []
    for where, entry in _entries(path or GENERAL_SET):
        try:
            question, answer, accept = entry["question"], entry["answer"], tuple(entry["accept"])
        except (KeyError, TypeError) as error:
            raise RowsInvalid(f"{where}: {error} is missing") from None
        if path is None and is_replayed(question):
            continue
        rows.append(Row(f"general-{len(rows)}", _user(question), answer, GENERAL, accept=accept))
    return rows


def read_suite(path: Path) -> list[Row]:
    """A benchmark suite; see the module. Raises RowsInvalid naming the line."""
    return [_from_suite(entry, where, f"{path.stem}-{index}") for index, (where, entry) in enumerate(_entries(path))]


def is_classification(rows: Sequence[Row]) -> bool:
    """Whether the rows ask for labels: they say so, or their short answers repeat."""
    named = Counter(row.task_type for row in rows if row.task_type)
    if named:
        return named.most_common(1)[0][0] == CLASSIFICATION
    targets = Counter(row.target.strip() for row in rows)
    return len(rows) >= 2 * len(targets) and max(map(len, targets)) <= MAX_LABEL


def _from_dataset(entry: Mapping[str, Any], where: str) -> Row:
    messages, completion = entry.get("messages"), entry.get("completion")
    if not isinstance(messages, list) or not messages or not isinstance(completion, str):
        raise RowsInvalid(f"{where}: no messages or no completion")
    tools, kind = entry.get("tools") or (), entry.get("task_type") or ""
    return Row(str(entry.get("id", where)), tuple(messages), completion, kind, tuple(tools))


def _from_suite(entry: Mapping[str, Any], where: str, name: str) -> Row:
    messages = entry.get("messages") or ([{"role": "user", "content": entry["prompt"]}] if "prompt" in entry else None)
    if not isinstance(messages, list) or not all(isinstance(each, dict) and "role" in each for each in messages):
        raise RowsInvalid(f"{where}: neither 'messages' nor 'prompt'")
    judged_by = [key for key in ("answer", "pattern", "json_schema") if key in entry]
    if len(judged_by) != 1:
        raise RowsInvalid(f"{where}: exactly one of 'answer', 'pattern' and 'json_schema' is needed")
    try:
        pattern = re.compile(entry["pattern"]) if "pattern" in entry else None
    except (re.error, TypeError) as error:
        raise RowsInvalid(f"{where}: 'pattern' is no regular expression: {error}") from None
    return Row(
        str(entry.get("id", name)),
        tuple(messages),
        str(entry.get("answer", "")),
        str(entry.get("task_type", "")),
        tuple(entry.get("tools") or ()),
        tuple(entry.get("accept") or ()),
        pattern,
        entry.get("json_schema"),
    )


def _entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Place and content of each line."""
    try:
        lines: Iterable[str] = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RowsInvalid(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise RowsInvalid(f"{path}:{number}: no JSON: {error}") from None
        if not isinstance(entry, dict):
            raise RowsInvalid(f"{path}:{number}: no JSON object")
        yield f"{path}:{number}", entry


def _user(text: str) -> tuple[Mapping[str, Any], ...]:
    return ({"role": "user", "content": text},)

"""Files of rows: JSON lines, one JSON array, CSV, TSV, ChatML text; plain or gzip, whatever they are called.

A row that cannot be read is told with the line that it begins on, and reading goes on after it.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from training.casebank.errors import ImportFailed

CHATML_START, CHATML_END = "<|im_start|>", "<|im_end|>"
_GZIP_MAGIC = b"\x1f\x8b"
_MAX_FIELD = 1 << 24
"""longest cell of a CSV, in characters"""
_SNIFFED = 4096
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Row:
    """One row. `line` is where it begins in the file, from 1 on; `problem` tells why it has no values."""

    line: int
    values: dict[str, Any] | None
    problem: str = ""


def read_rows(path: Path, on_bytes: Callable[[int], None] | None = None) -> Iterator[Row]:
    """The rows of `path`, one by one; `on_bytes` is told how much of the file has been read.

    Raises ImportFailed when there is no such file, or what it holds is none of the kinds above.
    """
    try:
        with path.open("rb") as raw, _text(raw) as text:
            head = text.read(_SNIFFED)
            text.seek(0)
            for row in _reader(path, head)(text):
                if on_bytes is not None:
                    on_bytes(raw.tell())
                yield row
    except (OSError, EOFError) as error:
        raise ImportFailed(f"{path}: {getattr(error, 'strerror', None) or error}") from None


@contextmanager
def _text(raw: IO[bytes]) -> Iterator[IO[str]]:
    zipped = raw.read(2) == _GZIP_MAGIC
    raw.seek(0)
    binary = gzip.GzipFile(fileobj=raw) if zipped else raw
    # bytes that are no UTF-8 become surrogates, so that their row can be told and the others read
    with io.TextIOWrapper(binary, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
        yield text


def _reader(path: Path, head: str) -> Callable[[IO[str]], Iterator[Row]]:
    begin = head.lstrip()
    if not begin:
        raise ImportFailed(f"{path} is empty")
    if begin.startswith(CHATML_START):
        return _read_chatml
    if begin.startswith("["):
        return _read_array
    if begin.startswith("{"):
        return _read_lines
    names = {suffix.lower() for suffix in path.suffixes}
    if names & {".jsonl", ".json", ".ndjson"}:
        raise ImportFailed(f"{path}: line 1 is no JSON")
    return lambda text: _read_csv(path, text, head)


def _read_lines(text: IO[str]) -> Iterator[Row]:
    for number, line in enumerate(text, 1):
        if line.strip():
            yield _parse(line, number)


def _parse(line: str, number: int) -> Row:
    if problem := _not_utf8(line):
        return Row(number, None, problem)
    try:
        return _object(json.loads(line), number)
    except json.JSONDecodeError as error:
        return Row(number, None, f"not JSON: {error.msg} at character {error.pos + 1}")
    except RecursionError:
        return Row(number, None, "nested too deeply")


def _object(value: Any, number: int) -> Row:
    return Row(number, value) if isinstance(value, dict) else Row(number, None, "not a JSON object")


def _read_array(text: IO[str]) -> Iterator[Row]:
    """A JSON array holds no line by which to go on after a mistake, so the rest is given up then."""
    whole, decode = text.read(), json.JSONDecoder().raw_decode
    position, line, counted = whole.index("[") + 1, 1, 0
    while True:
        position = _skip(whole, position, " \t\r\n,")
        if position >= len(whole) or whole[position] == "]":
            if position >= len(whole):
                yield Row(whole.count("\n") + 1, None, "the array does not end")
            return
        line, counted = line + whole.count("\n", counted, position), position
        try:
            value, position = decode(whole, position)
        except (json.JSONDecodeError, RecursionError) as error:
            yield Row(line, None, f"not JSON, and nothing after it can be read: {getattr(error, 'msg', error)}")
            return
        problem = _not_utf8(whole[counted:position])
        yield Row(line, None, problem) if problem else _object(value, line)


def _skip(whole: str, position: int, characters: str) -> int:
    while position < len(whole) and whole[position] in characters:
        position += 1
    return position


def _read_csv(path: Path, text: IO[str], head: str) -> Iterator[Row]:
    csv.field_size_limit(_MAX_FIELD)
    first = head.splitlines()[0]
    delimiter = max(",\t;", key=first.count)
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    try:
        columns = [name.strip().lower() for name in next(reader)]
    except csv.Error as error:
        raise ImportFailed(f"{path}: the header cannot be read: {error}") from None
    if len(columns) != len(set(columns)):
        raise ImportFailed(f"{path}: a column is named twice: {', '.join(columns)}")
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(line, None, f"not CSV: {error}")
            continue
        if cells:
            yield _csv_row(line, columns, cells)


def _csv_row(line: int, columns: list[str], cells: list[str]) -> Row:
    if len(cells) != len(columns):
        return Row(line, None, f"{len(cells)} cells, but the header has {len(columns)}")
    if problem := _not_utf8("".join(cells)):
        return Row(line, None, problem)
    return Row(line, dict(zip(columns, cells, strict=True)))


def _read_chatml(text: IO[str]) -> Iterator[Row]:
    """Conversations are divided by an empty line, or by the next system message."""
    lines: list[str] = []
    began, is_open = 1, False
    for number, line in enumerate(text, 1):
        starts = not is_open and (not line.strip() or line.startswith(f"{CHATML_START}system"))
        if starts and lines:
            yield _conversation(began, lines)
            lines = []
        if not lines:
            began = number
        if lines or line.strip():
            lines.append(line)
        is_open = (is_open or CHATML_START in line) and line.rfind(CHATML_END) <= line.rfind(CHATML_START)
    if lines:
        yield _conversation(began, lines)


def _conversation(line: int, lines: list[str]) -> Row:
    text = "".join(lines)
    problem = _not_utf8(text)
    return Row(line, None, problem) if problem else Row(line, {"text": text})


def _not_utf8(text: str) -> str:
    return "not UTF-8" if _ESCAPED_BYTE.search(text) else ""

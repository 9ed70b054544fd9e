"""A dataset's folder: three files of rows and what is known of them, written beside and moved into place at once."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from training.dataset.config import DatasetConfig
from training.dataset.errors import DatasetCorrupt, DatasetNotFound
from training.dataset.rows import PARTS, Part, Row

CARD = "dataset.json"
NAME = re.compile(r"ds-[0-9a-f]{16}")
ABANDONED_S = 86_400.0
"""age of a folder in the making whose maker must be dead"""
_STAGING = ".staging-"


@dataclass(frozen=True, slots=True)
class Dataset:
    """A dataset on disk. `rows` counts them by part; `report` holds `statistics` and `quality` as JSON."""

    name: str
    digest: str
    agent: str
    folder: Path
    config: DatasetConfig
    rows: Mapping[str, int]
    template: tuple[str, ...]
    report: Mapping[str, Any]

    def file(self, part: Part) -> Path:
        """Where the rows of a part lie."""
        return self.folder / f"{part}.jsonl"


@contextmanager
def staging(home: Path) -> Iterator[Path]:
    """A fresh folder beside the datasets, gone afterwards; those of makers long dead go first."""
    datasets = home / "datasets"
    datasets.mkdir(parents=True, exist_ok=True)
    for folder in datasets.glob(f"{_STAGING}*"):
        if _age_s(folder) > ABANDONED_S:
            shutil.rmtree(folder, ignore_errors=True)
    folder = datasets / f"{_STAGING}{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class RowWriter:
    """Writes rows into a folder and hashes them on the way. Use as a context."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[str, int] = dict.fromkeys(PARTS, 0)
        self._files: dict[str, BinaryIO] = {}
        self._hashes = {part: hashlib.sha256() for part in PARTS}
        self._stack = ExitStack()

    def __enter__(self) -> RowWriter:
        for part in PARTS:
            self._files[part] = self._stack.enter_context((self.folder / f"{part}.jsonl").open("wb"))
        return self

    def __exit__(self, *_: object) -> None:
        with self._stack:
            for file in self._files.values():
                file.flush()
                os.fsync(file.fileno())

    def add(self, row: Row, part: Part) -> str:
        """Write `row`; returns 32 hex digits of its hash."""
        line = row.line()
        self._files[part].write(line)
        self._hashes[part].update(line)
        self.rows[part] += 1
        return hashlib.sha256(line).hexdigest()[:32]

    def hashes(self) -> dict[str, str]:
        """SHA-256 of each part's file."""
        return {part: self._hashes[part].hexdigest() for part in PARTS}


def digest_of(agent: str, config: DatasetConfig, template: tuple[str, ...], hashes: Mapping[str, str]) -> str:
    """The dataset's content hash: of whose it is, how it was chosen, and every row."""
    what = {"agent": agent, "config": config.model_dump(), "template": template, "parts": dict(hashes)}
    return hashlib.sha256(json.dumps(what, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def name_of(digest: str) -> str:
    """The name of the dataset with that content."""
    return f"ds-{digest[:16]}"


def publish(home: Path, staged: RowWriter, dataset: Mapping[str, Any]) -> Dataset:
    """Write the card and move the folder into place; an intact one that is there stays. `dataset` has what cards have.

    Raises OSError when it cannot be written.
    """
    name = dataset["name"]
    final = home / "datasets" / name
    card = dict(dataset) | {"files": {p: {"rows": staged.rows[p], "sha256": staged.hashes()[p]} for p in PARTS}}
    with (staged.folder / CARD).open("w", encoding="utf-8") as file:
        json.dump(card, file, ensure_ascii=False, indent=1)
        file.flush()
        os.fsync(file.fileno())
    try:
        return load_dataset(home, name)
    except DatasetNotFound:
        pass
    except DatasetCorrupt:
        shutil.rmtree(final, ignore_errors=True)
    try:
        staged.folder.rename(final)
    except OSError:
        if not final.exists():
            raise  # else another process made the same one first
    return load_dataset(home, name)


def load_dataset(home: Path, name: str) -> Dataset:
    """The dataset `name`, every byte of it verified. Raises DatasetNotFound and DatasetCorrupt."""
    folder = home / "datasets" / name
    if not NAME.fullmatch(name) or not folder.is_dir():
        raise DatasetNotFound(f"no dataset '{name[:64]}' in {home / 'datasets'}", param="dataset")
    try:
        dataset, hashes = _read_card(folder)
        found = {part: _hash(dataset.file(part)) for part in PARTS}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetCorrupt(f"dataset {name} cannot be read: {error}", param="dataset") from error
    digest = digest_of(dataset.agent, dataset.config, dataset.template, hashes)
    if found != hashes or digest != dataset.digest or name_of(digest) != name:
        raise DatasetCorrupt(f"the files of dataset {name} are not what its name says", param="dataset")
    return dataset


def remove_files(home: Path, name: str) -> None:
    """Delete the folder of `name`, first out of sight, so that nobody finds half of it."""
    folder = home / "datasets" / name
    if folder.is_dir():
        with staging(home) as away:
            folder.rename(away / name)


def _read_card(folder: Path) -> tuple[Dataset, dict[str, str]]:
    card = json.loads((folder / CARD).read_bytes())
    dataset = Dataset(
        name=card["name"],
        digest=card["digest"],
        agent=card["agent"],
        folder=folder,
        config=DatasetConfig(**card["config"]),
        rows={part: card["files"][part]["rows"] for part in PARTS},
        template=tuple(card["template"]),
        report=card["report"],
    )
    return dataset, {part: card["files"][part]["sha256"] for part in PARTS}


def _hash(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _age_s(folder: Path) -> float:
    try:
        return time.time() - folder.stat().st_mtime
    except FileNotFoundError:
        return 0.0

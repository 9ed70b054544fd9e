"""Checkpoints: written whole or not at all, recognised when torn, the last good ones kept."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from training.trainer.errors import DiskFull
from training.trainer.status import write_json

MANIFEST = "checkpoint.json"
NAME = re.compile(r"step-(\d+)")
MIN_FREE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One that was written to its end."""

    step: int
    folder: Path


class Checkpoints:
    """Those of one run. A folder gets its name when every file in it has reached the disk and stands in its manifest.

    Of several processes only the `owner` names and deletes folders.
    """

    def __init__(self, folder: Path, keep: int, *, owner: bool = True) -> None:
        self._folder = folder
        self._keep = keep
        self._owner = owner
        if owner:
            folder.mkdir(parents=True, exist_ok=True)
            for torn in folder.glob("*.part"):
                shutil.rmtree(torn, ignore_errors=True)

    def newest(self) -> Checkpoint | None:
        """The last good one; torn ones are passed over."""
        return next((found for found in self._all() if _intact(found.folder)), None)

    def write(self, step: int, fill: Callable[[Path], None], barrier: Callable[[], None] = lambda: None) -> Checkpoint:
        """Let `fill` write its files, and keep them as the checkpoint of `step`.

        A full disk costs the oldest checkpoints, down to the last good one. Raises DiskFull when that is not enough.
        """
        partial = self._folder / f"step-{step:08d}.part"
        while True:
            try:
                self._fill(partial, fill, barrier)
                break
            except Exception as error:
                shutil.rmtree(partial, ignore_errors=True)
                self.make_room(error)
        found = Checkpoint(step, partial.with_suffix(""))
        if self._owner:
            shutil.rmtree(found.folder, ignore_errors=True)
            partial.rename(found.folder)
            _sync(self._folder)
            self._drop_old()
        barrier()
        return found

    def make_room(self, error: Exception) -> None:
        """Delete the oldest checkpoint if `error` came from a full disk, else raise it.

        Raises DiskFull when only the last good one is left.
        """
        if not self._owner or not disk_is_full(error, self._folder):
            raise error
        if not self._delete_oldest():
            raise DiskFull(f"no room in {self._folder.parent}; the last good checkpoint is kept") from error

    def _fill(self, partial: Path, fill: Callable[[Path], None], barrier: Callable[[], None]) -> None:
        if self._owner:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
        barrier()
        fill(partial)
        barrier()
        if self._owner:
            _write_manifest(partial)

    def _all(self) -> Iterator[Checkpoint]:
        """All that have their name, the newest first."""
        names = ((NAME.fullmatch(entry.name), entry) for entry in self._folder.iterdir())
        found = [Checkpoint(int(match[1]), entry) for match, entry in names if match]
        return iter(sorted(found, key=lambda each: each.step, reverse=True))

    def _drop_old(self) -> None:
        for found in list(self._all())[self._keep :]:
            shutil.rmtree(found.folder, ignore_errors=True)

    def _delete_oldest(self) -> bool:
        """Delete the oldest, unless it is the last good one; whether there was one to delete."""
        last = self.newest()
        older = [found for found in self._all() if last is None or found.step != last.step]
        if not older:
            return False
        shutil.rmtree(older[-1].folder)
        return True


def disk_is_full(error: BaseException, folder: Path) -> bool:
    """Whether a write to `folder` failed for want of room. torch and safetensors do not always say so."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if not isinstance(error, Exception):
        return False
    return "No space left" in str(error) or shutil.disk_usage(folder).free < MIN_FREE_BYTES


def _write_manifest(folder: Path) -> None:
    files = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        files[str(file.relative_to(folder))] = {"bytes": file.stat().st_size, "sha256": _digest(file)}
        _sync(file)
    write_json(folder / MANIFEST, {"files": files})
    _sync(folder / MANIFEST)


def _intact(folder: Path) -> bool:
    try:
        files = json.loads((folder / MANIFEST).read_bytes())["files"]
        return all(_digest(folder / name) == told["sha256"] for name, told in files.items())
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _digest(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

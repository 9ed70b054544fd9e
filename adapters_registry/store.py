"""Files of adapters on disk: staged beside the store, then moved into place in one step.

`adapters/<name>/<digest>/` holds a published version, `staging/<id>/` one in the making, `staging/<id>.lock` is held by
the process that makes it. Publication is a rename under `publish.lock`, and the row that makes the version visible is
written under the same lock; so whoever holds the lock sees no half-done publication, and a folder without a row is
what a dead process left.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from adapters_registry.digest import digest_of
from adapters_registry.locks import file_lock, try_file_lock


class AdapterStore:
    """The folder `root`. Safe for threads and processes of one machine."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self.adapters = self.root / "adapters"
        self._staging = self.root / "staging"
        for folder in (self.adapters, self._staging):
            folder.mkdir(parents=True, exist_ok=True)

    def path_of(self, name: str, digest: str) -> Path:
        """Where that version is, or would be."""
        return self.adapters / name / digest

    def publishing(self) -> AbstractContextManager[None]:
        """The lock under which versions appear and vanish. Hold it briefly."""
        return file_lock(self.root / "publish.lock")

    @contextmanager
    def stage(self) -> Iterator[Path]:
        """A fresh folder of this process, on the store's file system; gone afterwards."""
        folder = self._staging / uuid.uuid4().hex
        lock = folder.with_suffix(".lock")
        with file_lock(lock):
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)
                lock.unlink(missing_ok=True)

    def publish(self, staged: Path, name: str, digest: str) -> Path:
        """Move `staged` into place, atomically. Hold `publishing`. Identical content already there stays as it is."""
        final = self.path_of(name, digest)
        if final.exists():
            if self.is_intact(name, digest):
                return final
            self.remove(name, digest)
        if not final.parent.exists():
            final.parent.mkdir()
            _sync_folder(self.adapters)
        _sync_folder(staged)
        staged.rename(final)
        _sync_folder(final.parent)
        return final

    def is_intact(self, name: str, digest: str) -> bool:
        """Whether the stored files still have the digest that they are stored under."""
        try:
            return digest_of(self.path_of(name, digest)) == digest
        except OSError:
            return False

    def remove(self, name: str, digest: str) -> bool:
        """Delete a published version; whether it was there. Hold `publishing`. Never leaves half a folder in place."""
        final = self.path_of(name, digest)
        trash = self._staging / uuid.uuid4().hex
        lock = trash.with_suffix(".lock")
        with file_lock(lock):
            try:
                final.rename(trash)
            except FileNotFoundError:
                return False
            finally:
                shutil.rmtree(trash, ignore_errors=True)
                lock.unlink(missing_ok=True)
        _remove_if_empty(final.parent)
        return True

    def sweep(self, has_row: Callable[[str, str], bool]) -> int:
        """Remove what dead processes left: stagings nobody holds, and versions without a row. Returns how many."""
        return self._sweep_staging() + self._sweep_orphans(has_row)

    def _sweep_staging(self) -> int:
        swept = 0
        for name in {entry.name.removesuffix(".lock") for entry in self._staging.iterdir()}:
            lock = self._staging / f"{name}.lock"
            with try_file_lock(lock) as held:
                if held:
                    shutil.rmtree(self._staging / name, ignore_errors=True)
                    lock.unlink(missing_ok=True)
                    swept += 1
        return swept

    def _sweep_orphans(self, has_row: Callable[[str, str], bool]) -> int:
        swept = 0
        for folder in list(self.adapters.glob("*/*")):
            name, digest = folder.parent.name, folder.name
            if has_row(name, digest):
                continue
            with self.publishing():
                # its row may have been written while we waited
                if not has_row(name, digest):
                    swept += self.remove(name, digest)
        with self.publishing():
            for folder in list(self.adapters.iterdir()):
                _remove_if_empty(folder)
        return swept


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return

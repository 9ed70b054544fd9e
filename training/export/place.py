"""Where an export appears: whole and in one step, or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training.export.errors import ExportError, ExportRefused

MARK = "export.json"
"""file in every export; only a folder that holds one is ever replaced"""


@contextmanager
def new_folder(destination: Path, *, force: bool = False) -> Iterator[Path]:
    """A folder beside `destination` that becomes it when the block ends well, and vanishes when it does not.

    A folder that exists must be empty, or with `force` an earlier export. What a killed export left beside it goes
    first. Raises ExportRefused.
    """
    destination = destination.absolute()
    check_free(destination, force=force)
    destination.parent.mkdir(parents=True, exist_ok=True)
    _sweep(destination)
    partial = destination.with_name(f".{destination.name}.partial-{os.getpid()}")
    partial.mkdir()
    try:
        yield partial
        _replace(partial, destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_free(destination: Path, *, force: bool = False) -> None:
    """Raise ExportRefused unless `destination` may be written."""
    if not (destination.exists() or destination.is_symlink()):
        return
    if not destination.is_dir():
        raise ExportRefused(f"{destination} exists and is not a folder")
    if not any(destination.iterdir()):
        return
    if not force:
        raise ExportRefused(f"{destination} is not empty; --force replaces an earlier export")
    if not (destination / MARK).is_file():
        raise ExportRefused(f"{destination} holds no earlier export (no {MARK}), so it is not replaced")


def check_space(destination: Path, needed: int) -> None:
    """Raise ExportError when the disk of `destination` has fewer than `needed` bytes free."""
    folder = next(parent for parent in (destination.absolute(), *destination.absolute().parents) if parent.is_dir())
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise ExportError(f"{destination} needs {needed / 1e9:.1f} GB, and its disk has {free / 1e9:.1f} GB free")


def _replace(partial: Path, destination: Path) -> None:
    for file in partial.iterdir():
        _sync(file)
    _sync(partial)
    if destination.is_dir():
        earlier = destination.with_name(f".{destination.name}.partial-{os.getpid()}-earlier")
        destination.rename(earlier)
        partial.rename(destination)
        shutil.rmtree(earlier)
    else:
        partial.rename(destination)
    _sync(destination.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(destination: Path) -> None:
    prefix = f".{destination.name}.partial-"
    for leftover in destination.parent.glob(f"{prefix}*"):
        owner = leftover.name.removeprefix(prefix).split("-")[0]
        if owner.isdecimal() and not _is_alive(int(owner)):
            shutil.rmtree(leftover, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

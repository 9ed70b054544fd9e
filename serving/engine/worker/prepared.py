"""Adapters on disk as an engine wants them in memory: one file each, read with nothing to parse but its head.

A file is a head of JSON, padded to `HEAD_ALIGNMENT`, then the row that `serving.engine.worker.layout` describes. The
head holds a checksum for each block of the row. Files are named after the adapter's digest, in a folder named after
the layout; what is missing or damaged is made again from the adapter itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import Executor, wait
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MAGIC = b"LDPREP1\n"
HEAD_ALIGNMENT = 4096
BLOCK = 4 << 20
"""bytes that one thread reads and checks at a time"""
SUFFIX = ".row"
UNFINISHED = ".new"
ABANDONED_S = 3600.0
"""after which nobody is writing an unfinished file any more"""
FORGOTTEN_S = 30 * 24 * 3600.0
"""after which a file of another layout that nothing has opened is of no use: versions and settings have changed"""


class Damaged(Exception):
    """The file is not what was written; the message says how."""


@dataclass(frozen=True, slots=True)
class Head:
    """What is known of a row: the fields that it fills, up to which rank, its bytes and their checksums by block."""

    digest: str
    rank: int
    present: tuple[int, ...]
    size: int
    checksums: tuple[int, ...] = ()


class PreparedFile:
    """An open prepared file."""

    def __init__(self, path: Path, head: Head, begin: int) -> None:
        self.path = path
        self.head = head
        self._begin = begin

    def read_into(self, row: memoryview, readers: Executor) -> None:
        """Fill `row`, of `head.size` bytes, with `readers` in parallel. Raises Damaged or OSError.

        Neither reading nor checking holds the interpreter lock.
        """
        descriptor = os.open(self.path, os.O_RDONLY)
        try:
            jobs = [
                readers.submit(_read_block, descriptor, self._begin + start, row[start:end], checksum)
                for (start, end), checksum in zip(_blocks(self.head.size), self.head.checksums, strict=True)
            ]
            # One that failed must not leave others writing: the memory may be given to another row.
            wait(jobs)
        finally:
            os.close(descriptor)
        for job in jobs:
            job.result()


def sweep(root: Path, keep: str) -> int:
    """Remove what nobody will read below `root`, where each layout has a folder: how many files.

    That is what a kill left unfinished, and the files of layouts other than `keep` that were not opened for long.
    Opening a file renews its time. Raises OSError if `root` cannot be listed.
    """
    now, removed = time.time(), 0
    unfinished = [(file, ABANDONED_S) for file in root.glob(f"*/*{UNFINISHED}")]
    others = [(file, FORGOTTEN_S) for file in root.glob(f"*/*{SUFFIX}") if file.parent.name != keep]
    for file, most_s in unfinished + others:
        with contextlib.suppress(OSError):  # another engine removed it, or it is not ours to remove
            if now - file.stat().st_mtime > most_s:
                file.unlink()
                removed += 1
    return removed


class PreparedFolder:
    """The prepared files of one layout, at most `capacity` bytes of them: the least recently used leave first.

    Safe for threads and for processes that share the folder.
    """

    def __init__(self, folder: Path, capacity: int) -> None:
        self._folder = folder
        self.capacity = capacity
        self.evictions = 0
        self._changing = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self.used, self.count = self._measure()

    def path_of(self, digest: str) -> Path:
        """Where the file of that adapter is, or would be."""
        return self._folder / f"{digest}{SUFFIX}"

    def open(self, digest: str) -> PreparedFile | None:
        """The file of that adapter; None if there is none. Raises Damaged."""
        path = self.path_of(digest)
        try:
            with path.open("rb") as file:
                head, begin = _read_head(file.read(HEAD_ALIGNMENT), file)
                size = os.fstat(file.fileno()).st_size
            with contextlib.suppress(OSError):  # then it merely looks less used than it is
                os.utime(path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise Damaged(f"{path.name} cannot be read: {error.strerror}") from error
        if head.digest != digest or size != begin + head.size:
            raise Damaged(f"{path.name} holds {size} bytes of {head.digest[:12]}")
        return PreparedFile(path, head, begin)

    def write(self, head: Head, row: memoryview) -> bool:
        """Keep the row of an adapter; whether there was room. Raises OSError."""
        checksums = tuple(zlib.crc32(row[start:end]) for start, end in _blocks(head.size))
        text = json.dumps(asdict(head) | {"checksums": checksums}).encode()
        start = MAGIC + struct.pack("<II", len(text), zlib.crc32(text)) + text
        start += bytes(-len(start) % HEAD_ALIGNMENT)
        if len(start) + head.size > self.capacity:
            return False
        path = self.path_of(head.digest)
        temporary = path.with_suffix(f".{os.getpid()}{UNFINISHED}")
        with self._changing:
            self._make_room(len(start) + head.size)
            try:
                with temporary.open("wb") as file:
                    file.write(start)
                    file.write(row[: head.size])
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            self.used, self.count = self._measure()
        return True

    def remove(self, digest: str) -> None:
        """Forget the file of that adapter."""
        with self._changing:
            with contextlib.suppress(OSError):  # it stays damaged, and the adapter is made again each time
                self.path_of(digest).unlink(missing_ok=True)
            self.used, self.count = self._measure()

    def _make_room(self, needed: int) -> None:
        files = sorted(self._files(), key=lambda found: found[1].st_mtime_ns)
        used = sum(status.st_size for _, status in files)
        for path, status in files:
            if used + needed <= self.capacity:
                return
            path.unlink(missing_ok=True)
            used -= status.st_size
            self.evictions += 1

    def _measure(self) -> tuple[int, int]:
        sizes = [status.st_size for _, status in self._files()]
        return sum(sizes), len(sizes)

    def _files(self) -> Iterator[tuple[Path, os.stat_result]]:
        with os.scandir(self._folder) as entries:
            for entry in entries:
                try:
                    if entry.name.endswith(SUFFIX):
                        yield Path(entry.path), entry.stat()
                except FileNotFoundError:  # another process removed it just now
                    continue


def _blocks(size: int) -> Iterator[tuple[int, int]]:
    return ((start, min(start + BLOCK, size)) for start in range(0, size, BLOCK))


def _read_block(descriptor: int, position: int, into: memoryview, checksum: int) -> None:
    done = 0
    while done < len(into):
        count = os.preadv(descriptor, [into[done:]], position + done)
        if count == 0:
            raise Damaged("the file ends early")
        done += count
    if zlib.crc32(into) != checksum:
        raise Damaged("its checksum is wrong")


def _read_head(start: bytes, file: Any) -> tuple[Head, int]:
    """The head and where the row begins; `file` goes on after `start`."""
    fixed = len(MAGIC) + 8
    if len(start) < fixed or not start.startswith(MAGIC):
        raise Damaged("it is no prepared adapter")
    length, checksum = struct.unpack("<II", start[len(MAGIC) : fixed])
    end = fixed + length
    begin = -(-end // HEAD_ALIGNMENT) * HEAD_ALIGNMENT
    text = (start + file.read(max(0, begin - len(start))))[fixed:end]
    if zlib.crc32(text) != checksum:
        raise Damaged("its head is damaged")
    try:
        content = json.loads(text)
        lists = {name: tuple(content[name]) for name in ("present", "checksums")}
        return Head(**{**content, **lists}), begin
    except (KeyError, TypeError, ValueError) as error:
        raise Damaged(f"its head is of another kind: {error}") from error

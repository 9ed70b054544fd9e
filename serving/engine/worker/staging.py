"""Adapters on their way to a slot, on threads beside the engine's.

An adapter is prepared once (`prepared`), read into host memory (`arena`) and copied into a slot that was reserved for
it (`slot_bank`), with nothing for the engine's thread to do but reserve and commit. What is copied into a reserved slot
no running request reads, so it needs no step to end.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch

from serving.engine.worker.arena import Arena, Row
from serving.engine.worker.notices import Teller
from serving.engine.worker.prepared import Damaged, Head, PreparedFile, PreparedFolder, sweep
from serving.engine.worker.protocol import StagingPlan
from serving.engine.worker.slot_bank import Packed, SlotBank

log = logging.getLogger(__name__)

READERS = max(1, min(4, (os.cpu_count() or 1) // 4))
"""threads that read one file together; on a small machine the model wants the other cores"""
SLICE = 8 << 20
"""bytes on their way to the device at once: the engine's own small copies wait for no more than these"""


class Progress(StrEnum):
    """Of one adapter on its way."""

    STAGING = "staging"
    FILLED = "filled"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Adapter:
    """What staging is told: engine-side name, folder, and the digest of what is in it."""

    name: str
    path: str
    digest: str


@dataclass(eq=False, slots=True)
class Staging:
    """One adapter on its way to `slot`, which nothing reads after the device's event `freed`; None: nothing does now.

    `ticket` is for who asked.
    """

    adapter: Adapter
    slot: int
    freed: Any
    ticket: int = 0
    progress: Progress = Progress.STAGING
    reason: str = ""
    rank: int = 0


class Stager:
    """Brings adapters into host memory and into slots. `begin` and `prefetch` return at once."""

    def __init__(
        self,
        bank: SlotBank,
        arena: Arena,
        folder: PreparedFolder,
        *,
        loads: int = 1,
        on_filled: Callable[[int], None] = lambda _: None,
    ) -> None:
        """`loads` adapters are on their way to slots at a time, so that one need not wait for another's disk.

        `on_filled` is called with the ticket of each staging that has filled its slot, on a thread of ours.
        """
        self._on_filled = on_filled
        self._bank = bank
        self._arena = arena
        self._folder = folder
        self._urgent = ThreadPoolExecutor(loads, "loradock-stage")
        self._soon = ThreadPoolExecutor(1, "loradock-prefetch")
        self._idle = ThreadPoolExecutor(1, "loradock-prepare")
        self._copying = threading.Lock()
        self._readers = ThreadPoolExecutor(READERS, "loradock-read")
        self._idle_reader = ThreadPoolExecutor(1, "loradock-read-idle")
        self._busy: set[str] = set()
        self._turn = threading.Condition()
        self._stream = torch.cuda.Stream(bank.device) if bank.device.type == "cuda" else None
        self._counts: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def begin(self, staging: Staging) -> None:
        """Start to fill `staging.slot`; `staging.progress` tells when it is done."""
        self._urgent.submit(self._stage, staging)

    def prefetch(self, adapter: Adapter, *, keep: bool) -> Future[None]:
        """Prepare an adapter for later; with `keep`, also bring it into host memory, else only if there is room."""
        return self._soon.submit(self._near, adapter) if keep else self._idle.submit(self._ready, adapter)

    def close(self) -> None:
        """End the threads and give back the memory."""
        for threads in (self._urgent, self._soon, self._idle, self._readers, self._idle_reader):
            threads.shutdown(wait=True, cancel_futures=True)
        self._arena.close()

    def tiers(self) -> dict[str, dict[str, float]]:
        """Sizes, use and events of each tier; seconds and bytes are sums."""
        arena, folder = self._arena, self._folder
        return {
            "disk": {
                "capacity_bytes": folder.capacity,
                "used_bytes": folder.used,
                "adapters": folder.count,
                "evictions": folder.evictions,
                "prepared": self._counts["prepared"],
                "damaged": self._counts["damaged"],
                "prepare_seconds": self._seconds["prepare"],
            },
            "host": {
                "capacity_bytes": arena.capacity,
                "used_bytes": arena.used,
                "adapters": arena.count,
                "hits": arena.hits,
                "misses": arena.misses,
                "evictions": arena.evictions,
                "read_bytes": self._counts["read_bytes"],
                "read_seconds": self._seconds["read"],
            },
            "slots": {
                "capacity": self._bank.count,
                "filled": self._counts["filled"],
                "failed": self._counts["failed"],
                "fill_bytes": self._counts["fill_bytes"],
                "fill_seconds": self._seconds["fill"],
            },
        }

    def _stage(self, staging: Staging) -> None:
        try:
            row = self._bring(staging.adapter)
            try:
                self._fill(staging, row)
            finally:
                self._arena.release(row)
            self._on_filled(staging.ticket)
        except Exception as error:  # whatever vLLM makes of a bad adapter; told to who asked for it
            self._count("failed")
            staging.reason = " ".join(str(error).split()) or type(error).__name__
            staging.progress = Progress.FAILED

    def _near(self, adapter: Adapter) -> None:
        with self._only_logged(adapter):
            self._arena.release(self._bring(adapter))

    def _ready(self, adapter: Adapter) -> None:
        with self._only_logged(adapter), self._single(adapter.digest):
            if adapter.digest in self._arena:
                return
            row = None
            if (file := self._open(adapter.digest)) is not None:
                room = self._arena.take_free(file.head.size)
                if room is None:
                    return
                row = self._read(file, room, self._idle_reader, asked=False)
            self._arena.release(row or self._prepare(adapter, asked=False))

    @contextlib.contextmanager
    def _only_logged(self, adapter: Adapter) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever vLLM makes of it; whoever needs the adapter will be told
            log.info("prefetching %s: %s", adapter.name, error)

    def _bring(self, adapter: Adapter) -> Row:
        """The adapter's row in host memory, in use until it is released."""
        with self._single(adapter.digest):
            row = self._arena.find(adapter.digest)
            if row is None and (file := self._open(adapter.digest)) is not None:
                row = self._read(file, self._arena.take(file.head.size), self._readers)
            return row or self._prepare(adapter)

    def _read(self, file: PreparedFile, row: Row, readers: Executor, *, asked: bool = True) -> Row | None:
        """Read the prepared file into `row`; None if it is gone or damaged, and the row is free again."""
        began = time.perf_counter()
        with self._kept_or_discarded(row):
            try:
                file.read_into(row.memory, readers)
            except FileNotFoundError:  # it left since it was opened
                self._arena.discard(row)
                return None
            except (Damaged, OSError) as error:
                self._arena.discard(row)
                self._forget(file.head.digest, error)
                return None
            self._took("read", time.perf_counter() - began)
            self._count("read_bytes", file.head.size)
            return self._keep(row, file.head, asked=asked)

    @contextlib.contextmanager
    def _kept_or_discarded(self, row: Row) -> Iterator[None]:
        """Free the row's memory if what fills it fails."""
        try:
            yield
        except BaseException:
            self._arena.discard(row)
            raise

    def _count(self, event: str, by: int = 1) -> None:
        with self._counting:
            self._counts[event] += by

    def _took(self, what: str, seconds: float) -> None:
        with self._counting:
            self._seconds[what] += seconds

    def _prepare(self, adapter: Adapter, *, asked: bool = True) -> Row:
        """Make the row from the adapter's folder and write its prepared file."""
        began = time.perf_counter()
        packed = self._bank.pack(adapter.name, adapter.path)
        present = tuple(sorted(packed.tensors))
        parts, size = self._bank.layout.parts(present, packed.rank)
        head = Head(adapter.digest, packed.rank, present, size)
        row = self._arena.take(size) if asked else self._arena.take_free(size)
        row = row or Row(torch.empty(size, dtype=torch.uint8), None)
        with self._kept_or_discarded(row):
            row.buffer.zero_()
            self._lay_out(row, head)
            for part, into in zip(parts, row.parts, strict=True):
                into.copy_(_filled(packed, part.field, part.shape))
            try:
                self._folder.write(head, row.memory)
            except OSError as error:
                log.warning("the prepared form of %s cannot be kept: %s", adapter.name, error)
            self._took("prepare", time.perf_counter() - began)
            self._count("prepared")
            return self._keep(row, head, asked=asked)

    def _keep(self, row: Row, head: Head, *, asked: bool) -> Row:
        self._lay_out(row, head)
        self._arena.keep(head.digest, row, asked=asked)
        return row

    def _lay_out(self, row: Row, head: Head) -> None:
        """Make the row's parts tensors, once: each costs the interpreter microseconds, and the engine wants it too."""
        if row.parts:
            return
        layout = self._bank.layout
        parts, _ = layout.parts(head.present, head.rank)
        row.head = head
        row.parts = [
            row.buffer[part.offset : part.offset + part.size]
            .view(getattr(torch, layout.fields[part.field].dtype))
            .view(part.shape)
            for part in parts
        ]

    def _fill(self, staging: Staging, row: Row) -> None:
        """Copy the row into the slot, in slices; one row at a time, as the engine's own copies wait for these."""
        with self._copying:
            self._copy(staging, row)
        self._count("fill_bytes", row.head.size)
        self._count("filled")
        staging.rank = row.head.rank
        staging.progress = Progress.FILLED

    def _copy(self, staging: Staging, row: Row) -> None:
        began = time.perf_counter()
        targets = self._bank.targets(staging.slot, row.head.rank)
        filled = [targets[number] for number in row.head.present]
        with torch.inference_mode(), self._on_stream(staging.freed):
            torch._foreach_zero_(self._bank.whole(staging.slot))
            for begin, end in slices(row.parts):
                torch._foreach_copy_(filled[begin:end], row.parts[begin:end], non_blocking=True)
                self._settle()
        self._took("fill", time.perf_counter() - began)

    @contextlib.contextmanager
    def _on_stream(self, freed: Any) -> Iterator[None]:
        if self._stream is None:
            yield
            return
        with torch.cuda.stream(self._stream):
            if freed is not None:
                self._stream.wait_event(freed)
            yield

    def _settle(self) -> None:
        if self._stream is not None:
            self._stream.synchronize()

    def _open(self, digest: str) -> PreparedFile | None:
        try:
            file = self._folder.open(digest)
            if file is not None:
                self._check(file.head)
        except Damaged as error:
            self._forget(digest, error)
            return None
        return file

    def _check(self, head: Head) -> None:
        """Raises Damaged for a row that does not lie as rows of these slots do."""
        known = range(len(self._bank.layout.fields))
        if not all(number in known for number in head.present):
            raise Damaged("it fills fields that there are not")
        if self._bank.layout.parts(head.present, head.rank)[1] != head.size:
            raise Damaged(f"a row of rank {head.rank} does not have {head.size} bytes")

    def _forget(self, digest: str, error: Exception) -> None:
        log.warning("the prepared form of %s is made again: %s", digest[:12], error)
        self._count("damaged")
        self._folder.remove(digest)

    @contextlib.contextmanager
    def _single(self, digest: str) -> Iterator[None]:
        """One thread at a time for each adapter."""
        with self._turn:
            self._turn.wait_for(lambda: digest not in self._busy)
            self._busy.add(digest)
        try:
            yield
        finally:
            with self._turn:
                self._busy.discard(digest)
                self._turn.notify_all()


def slices(parts: list[torch.Tensor]) -> Iterator[tuple[int, int]]:
    """Cut a row into runs of parts of about `SLICE` bytes."""
    begin = size = 0
    for number, part in enumerate(parts):
        size += part.numel() * part.element_size()
        if size >= SLICE:
            yield begin, number + 1
            begin, size = number + 1, 0
    if begin < len(parts):
        yield begin, len(parts)


def _filled(packed: Packed, number: int, shape: tuple[int, ...]) -> torch.Tensor:
    tensor = packed.tensors[number]
    for dim, size in enumerate(shape):
        tensor = tensor.narrow(dim, 0, size)
    return tensor


def open_stager(bank: SlotBank, plan: StagingPlan) -> Stager:
    """A stager with its tiers, this worker's share of them. Raises OSError or RuntimeError if one cannot be had."""
    with contextlib.suppress(OSError):  # it only tidies up
        if removed := sweep(Path(plan.folder), keep=bank.layout.key):
            log.info("removed %d prepared files that nobody will read", removed)
    folder = PreparedFolder(Path(plan.folder) / bank.layout.key, plan.disk_bytes // bank.workers)
    teller = Teller(plan.notices)
    # Last, as nothing may fail once the memory is pinned.
    arena = Arena(plan.host_bytes // bank.workers, pinned=bank.device.type == "cuda")
    return Stager(bank, arena, folder, loads=plan.loads, on_filled=teller.tell)

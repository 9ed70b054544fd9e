"""Rows of adapters in host memory: one block, pinned once, of so many bytes; the least recently used leave first.

Pinning costs a driver call that other threads wait for, so nothing is pinned after the start. A row that does not fit
beside the rows in use gets memory of its own, which is not kept.
"""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

import torch

from serving.engine.worker.prepared import Head

EMPTY = Head("", 0, (), 0)


@dataclass(eq=False, slots=True)
class Row:
    """The bytes of one adapter in host memory; `head` and its `parts`, as tensors, come when it is filled."""

    buffer: torch.Tensor
    offset: int | None
    users: int = 1
    head: Head = EMPTY
    parts: list[torch.Tensor] = field(default_factory=list)

    @property
    def memory(self) -> memoryview:
        """The bytes, to be written."""
        return self.buffer.numpy().data


class Arena:
    """`capacity` bytes of host memory. All methods may be called by any thread."""

    def __init__(self, capacity: int, *, pinned: bool) -> None:
        """Raises RuntimeError if the driver does not pin so much."""
        self.capacity = capacity
        self.evictions = 0
        self.hits = 0
        self.misses = 0
        self._block = torch.empty(capacity, dtype=torch.uint8)
        self._pinned = pinned and capacity > 0
        if self._pinned:
            pin(self._block)
        self._rows: OrderedDict[str, Row] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def used(self) -> int:
        """Bytes that hold rows."""
        with self._lock:
            return sum(row.buffer.numel() for row in self._rows.values())

    @property
    def count(self) -> int:
        """Rows kept."""
        return len(self._rows)

    def __contains__(self, digest: str) -> bool:
        return digest in self._rows

    def find(self, digest: str) -> Row | None:
        """The row of that adapter, in use until `release`; None if it is not here."""
        with self._lock:
            row = self._rows.get(digest)
            if row is None:
                self.misses += 1
                return None
            self.hits += 1
            row.users += 1
            self._rows.move_to_end(digest)
            return row

    def take(self, size: int) -> Row:
        """Memory for a row of `size` bytes, in use until `release`; others leave for it."""
        with self._lock:
            while (offset := self._gap(size)) is None:
                victim = next((digest for digest, row in self._rows.items() if not row.users), None)
                if victim is None or size > self.capacity:
                    return Row(torch.empty(size, dtype=torch.uint8), None)
                del self._rows[victim]
                self.evictions += 1
            return self._taken(offset, size)

    def take_free(self, size: int) -> Row | None:
        """Memory for a row of `size` bytes, in use until `release`, if none need leave for it."""
        with self._lock:
            offset = self._gap(size)
            return None if offset is None else self._taken(offset, size)

    def _taken(self, offset: int, size: int) -> Row:
        row = Row(self._block[offset : offset + size], offset)
        self._rows[f"taken at {offset}"] = row
        return row

    def keep(self, digest: str, row: Row, *, asked: bool = True) -> None:
        """From now on `find` gives `row`, which has been filled; one that nobody `asked` for is the first to leave.

        Raises RuntimeError if there is one already: its memory may be in use.
        """
        with self._lock:
            if digest in self._rows:
                raise RuntimeError(f"the row of {digest} is kept already")
            if row.offset is not None:
                del self._rows[f"taken at {row.offset}"]
                self._rows[digest] = row
                self._rows.move_to_end(digest, last=asked)

    def release(self, row: Row) -> None:
        """The row is not in use any more; it stays until its memory is needed."""
        with self._lock:
            row.users -= 1

    def discard(self, row: Row) -> None:
        """Free the memory of a row that could not be filled."""
        with self._lock:
            self._rows.pop(f"taken at {row.offset}", None)

    def close(self) -> None:
        """Unpin the memory; nothing reads or writes it any more."""
        if self._pinned:
            unpin(self._block)

    def _gap(self, size: int) -> int | None:
        """Offset of the first gap of `size` bytes."""
        end = 0
        taken = sorted((row.offset, row.buffer.numel()) for row in self._rows.values() if row.offset is not None)
        for offset, length in taken:
            if offset - end >= size:
                return end
            end = offset + length
        return end if self.capacity - end >= size else None


def pin(block: torch.Tensor) -> None:
    """Pin memory in place. Raises RuntimeError. torch's own pinned allocator would round up to a power of two."""
    status = torch.cuda.cudart().cudaHostRegister(block.data_ptr(), block.numel(), 0)
    if int(status):
        with contextlib.suppress(RuntimeError):  # CUDA keeps the error for the next launch, so let that be this one
            torch.ones(1, device="cuda")
        raise RuntimeError(f"{block.numel()} bytes of host memory cannot be pinned (CUDA error {int(status)})")


def unpin(block: torch.Tensor) -> None:
    """Undo `pin`, before the memory goes back to the system."""
    torch.cuda.cudart().cudaHostUnregister(block.data_ptr())

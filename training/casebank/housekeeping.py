"""What the CaseBank needs done from time to time: placing what was served, and deleting what is too old."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from adapters_registry import DatabaseError
from training.casebank.bank import CaseBank

log = logging.getLogger(__name__)

SETTLE_S = 5.0
EXPIRE_S = 3600.0
BUSY = 0.15
"""share of the processors in use from which on others are left their time"""
PAUSE = 29.0
"""rest after a piece of work, in durations of that work, while the machine is busy"""
STAT = Path("/proc/stat")


class Housekeeper:
    """Does it in a thread, between `start` and `stop`. `deleted` is called when cases were deleted."""

    def __init__(
        self,
        bank: CaseBank,
        retention_days: float | None,
        deleted: Callable[[], object] = lambda: None,
        *,
        settle_s: float = SETTLE_S,
    ) -> None:
        self._bank = bank
        self._retention_days = retention_days
        self._deleted = deleted
        self._settle_s = settle_s
        self._ended = threading.Event()
        self._processors = Processors()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begin, with both at once."""
        self._thread.start()

    def stop(self) -> None:
        """End after what is being done."""
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        expire_at = time.monotonic()
        while not self._ended.is_set():
            try:
                self._settle()
                if time.monotonic() >= expire_at:
                    expire_at = time.monotonic() + EXPIRE_S
                    self._expire()
            except (DatabaseError, OSError) as error:
                log.warning("the cases are not kept in order: %s", error)
            self._ended.wait(self._settle_s)

    def _settle(self) -> None:
        busy = self._processors.used() >= BUSY  # since the last piece, so this work is not in it
        began = time.monotonic()
        while not self._ended.is_set() and self._bank.settle_next():
            if busy:
                took_s = time.monotonic() - began
                self._processors.used()
                self._ended.wait(PAUSE * took_s)
                busy = self._processors.used() >= BUSY
            began = time.monotonic()

    def _expire(self) -> None:
        if expired := self._bank.expire(self._retention_days):
            log.info("%d cases were older than %s days and are deleted", expired, self._retention_days)
            self._deleted()


class Processors:
    """How much of this machine's processors is in use, from look to look."""

    def __init__(self) -> None:
        self._before = _ticks()

    def used(self) -> float:
        """Share in [0, 1] since the last look; the load average where the kernel does not tell."""
        before, self._before = self._before, _ticks()
        spent = [now - then for then, now in zip(before, self._before, strict=False)]
        if not sum(spent):
            return min(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        return 1 - sum(spent[IDLE]) / sum(spent)


IDLE = slice(3, 5)
"""of the ticks: idle, and waiting for a disk"""


def _ticks() -> list[int]:
    """What the processors have spent their time on since the start, as Linux counts it; empty elsewhere."""
    try:
        return [int(each) for each in STAT.read_text().splitlines()[0].split()[1:9]]
    except (OSError, ValueError, IndexError):
        return []

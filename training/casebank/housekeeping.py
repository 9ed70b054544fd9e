"""What the CaseBank needs done from time to time: placing what was served, and deleting what is too old."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable

from adapters_registry import DatabaseError
from training.casebank.bank import CaseBank

log = logging.getLogger(__name__)

SETTLE_S = 5.0
EXPIRE_S = 3600.0
BUSY = 0.5
"""load average, as a share of the processors, from which on others are left their time"""
PAUSE = 9.0
"""rest after a piece of work, in durations of that work, while the machine is busy"""


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
        began = time.monotonic()
        while not self._ended.is_set() and self._bank.settle_next():
            if _busy():
                self._ended.wait(PAUSE * (time.monotonic() - began))
            began = time.monotonic()

    def _expire(self) -> None:
        if expired := self._bank.expire(self._retention_days):
            log.info("%d cases were older than %s days and are deleted", expired, self._retention_days)
            self._deleted()


def _busy() -> bool:
    return os.getloadavg()[0] >= BUSY * (os.cpu_count() or 1)

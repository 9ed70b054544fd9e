"""What a request does with residency: hold an adapter, with so much patience."""

from __future__ import annotations

import time
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from serving.residency.slots import AdapterState, Entry

if TYPE_CHECKING:
    from serving.residency.residency import Residency


class StillCold(Exception):
    """The adapter would not be, or was not, ready within `Patience.fallback_after_s`."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a request waits for a cold adapter, in seconds.

    `fallback_after_s` None: only `give_up_after_s` counts.
    """

    fallback_after_s: float | None
    give_up_after_s: float


class Hold:
    """Keeps one adapter resident while the context is open.

    `was_ready` tells a warm start, `waited_s` the cold wait.
    """

    __slots__ = ("_entry", "_epoch", "_patience", "_residency", "waited_s", "was_ready")

    def __init__(self, residency: Residency, entry: Entry, patience: Patience) -> None:
        self._residency = residency
        self._entry = entry
        self._patience = patience
        self._epoch = -1
        self.was_ready = entry.state is AdapterState.READY
        self.waited_s = 0.0

    async def __aenter__(self) -> Hold:
        if self._entry.state is not AdapterState.READY:
            began = time.perf_counter()
            try:
                await self._residency.await_ready(self._entry, self._patience)
            finally:
                self.waited_s = time.perf_counter() - began
        self._epoch = self._residency.take(self._entry)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._residency.release(self._entry, self._epoch)

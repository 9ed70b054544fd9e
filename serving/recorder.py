"""Outcomes on their way to the CaseBank.

A bounded queue that never makes a request wait; what does not fit is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

log = logging.getLogger(__name__)

BATCH = 256
GATHER_S = 0.2
"""how long outcomes wait for others: a write costs about the same for one as for many"""
MAX_BYTES = 64 << 20
"""bodies held at once; more are dropped, for the requests they belong to must not run short of memory"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One served request. Bodies are the bytes as they passed; times are seconds; `response` None when it broke off."""

    request_id: str
    path: str
    caller: str
    agent: str | None
    session: str | None
    adapter: str | None
    base: str
    reason: str
    difficulty: float
    status: int
    request: bytes
    response: bytes | None
    streamed: bool
    prompt_tokens: int | None
    completion_tokens: int | None
    started_at: float
    latency_s: float
    metadata: dict[str, Any]

    @property
    def size(self) -> int:
        """Bytes of both bodies."""
        return len(self.request) + len(self.response or b"")


class CaseSink(Protocol):
    """Where outcomes go; implemented by the CaseBank."""

    def write(self, outcomes: Sequence[Outcome]) -> None:
        """Store `outcomes` in one transaction. Called in a thread; may raise OSError."""
        ...


class Recorder:
    """Hands outcomes to a sink in batches. Without a sink nothing is kept and nothing is counted."""

    def __init__(
        self,
        sink: CaseSink | None,
        *,
        capacity: int = 10_000,
        max_bytes: int = MAX_BYTES,
        on_drop: Callable[[int], None],
    ) -> None:
        self._sink = sink
        self._bytes = 0
        self._max_bytes = max_bytes
        self._queue: asyncio.Queue[Outcome] = asyncio.Queue(capacity)
        self._on_drop = on_drop
        self._writer: asyncio.Task[None] | None = None

    @property
    def enabled(self) -> bool:
        """Whether anyone listens; the caller may skip building outcomes otherwise."""
        return self._sink is not None

    def start(self) -> None:
        """Begin to write."""
        if self._sink is not None and self._writer is None:
            self._writer = asyncio.get_running_loop().create_task(self._write(self._sink), name="recorder")

    async def stop(self, grace_s: float = 5.0) -> None:
        """Write what is queued, for at most `grace_s` seconds, then end."""
        if self._writer is None:
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._queue.join()
        self._writer.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._writer
        self._on_drop(self._queue.qsize())
        self._writer = None

    def record(self, outcome: Outcome) -> None:
        """Queue `outcome`, or drop and count it when the queue is full. Never waits."""
        if self._sink is None:
            return
        if self._queue.full() or self._bytes + outcome.size > self._max_bytes:
            self._on_drop(1)
            return
        self._bytes += outcome.size
        self._queue.put_nowait(outcome)

    async def _write(self, sink: CaseSink) -> None:
        while True:
            batch = [await self._queue.get()]
            try:
                if self._queue.qsize() < BATCH:
                    await asyncio.sleep(GATHER_S)
                while len(batch) < BATCH and not self._queue.empty():
                    batch.append(self._queue.get_nowait())
                await asyncio.to_thread(sink.write, batch)
            except asyncio.CancelledError:  # the thread may yet finish it, too late for anyone to know
                self._on_drop(len(batch))
                raise
            except OSError as error:
                log.warning("%d outcomes could not be written: %s", len(batch), error)
                self._on_drop(len(batch))
            except Exception:  # the sink is not ours, and one batch that it cannot take must not end the capture
                log.exception("%d outcomes could not be written", len(batch))
                self._on_drop(len(batch))
            finally:
                for outcome in batch:
                    self._bytes -= outcome.size
                    self._queue.task_done()

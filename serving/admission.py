"""How many requests run at once: a bounded number, a bounded queue behind it, and 429 for the rest."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from serving.errors import Overloaded


class Admission:
    """`async with admission:` around a request's work.

    Raises Overloaded when the queue is full or the turn comes too late.

    First come first served. The free path takes no lock and no turn of the loop.
    """

    def __init__(self, max_running: int, max_queued: int, timeout_s: float) -> None:
        self._free = max_running
        self._max_queued = max_queued
        self._timeout_s = timeout_s
        self._queue: deque[asyncio.Future[None]] = deque()
        self.running = 0

    @property
    def queued(self) -> int:
        """Requests that wait for their turn."""
        return len(self._queue)

    async def __aenter__(self) -> None:
        if self._free > 0:
            self._free -= 1
        else:
            await self._wait_turn()
        self.running += 1

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.running -= 1
        self._pass_on()

    async def _wait_turn(self) -> None:
        if len(self._queue) >= self._max_queued:
            raise Overloaded(f"{self.running} requests are running and {len(self._queue)} waiting; try again later")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        try:
            async with asyncio.timeout(self._timeout_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._pass_on()  # the turn came in the same moment: the next one gets it
            elif turn in self._queue:
                self._queue.remove(turn)
            if isinstance(error, TimeoutError):
                raise Overloaded(f"no turn within {self._timeout_s:g} s; try again later") from None
            raise

    def _pass_on(self) -> None:
        while self._queue:
            turn = self._queue.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

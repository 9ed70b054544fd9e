"""Two ways to load an endpoint: closed loop and open loop. Both run in one event loop and report a dictionary."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, Literal
from urllib.parse import urlsplit

from bench.canned import STREAM_CHUNKS
from bench.http_client import Ask, Connection, Outcome
from bench.tally import Tally, spread

OPEN_CONNECTIONS = 8
"""opened before an open loop begins"""
MAX_CONNECTIONS = 512
DRAIN_S = 5.0
"""longest wait for answers still out at the end; the rest counts as unfinished"""
STRETCH = 4.0
"""a closed loop on a slow target runs up to this many times its seconds, for `MIN_ROUNDS` answers a connection"""
MIN_ROUNDS = 2


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask and how fast: `concurrency` for a closed loop, or `rate` (requests a second) for an open one."""

    url: str
    model: str = "auto"
    stream: bool = False
    concurrency: int = 1
    rate: float | None = None
    arrivals: Literal["poisson", "uniform"] = "poisson"
    seconds: float = 2.0
    warmup: float = 0.3
    seed: int = 0
    max_tokens: int = STREAM_CHUNKS
    tokens: int | None = STREAM_CHUNKS


class ClosedLoop:
    """`concurrency` connections, each always waiting for one answer."""

    def __init__(self, plan: Plan, asks: Iterator[Ask]) -> None:
        self._plan = plan
        self._asks = asks
        self._tally: Tally
        self._wanted: int | None = None
        """answers that end a loop which is past its seconds"""
        self._enough = asyncio.Event()
        self._stopping = False
        self._busy = 0
        self._idle = asyncio.Event()
        self._connections: set[Connection] = set()
        self._reconnects: set[asyncio.Task[None]] = set()

    async def run(self) -> dict[str, Any]:
        """Load the endpoint and say what happened."""
        plan = self._plan
        self._connections = {await connect(plan.url, self._done) for _ in range(plan.concurrency)}
        begin = perf_counter() + plan.warmup
        self._tally = Tally(begin)
        self._busy = plan.concurrency
        for connection in tuple(self._connections):
            connection.send(next(self._asks))
        await asyncio.sleep(plan.warmup + plan.seconds)
        self._wanted = MIN_ROUNDS * plan.concurrency
        if len(self._tally.done) < self._wanted:
            await within((STRETCH - 1) * plan.seconds, self._enough)
        self._tally.end = perf_counter()
        self._stopping = True
        unfinished = not await within(DRAIN_S, self._idle)
        report = self._tally.report(self._tally.end - begin) | {"unfinished": self._busy if unfinished else 0}
        await close(self._connections)
        return report

    def _done(self, connection: Connection, outcome: Outcome) -> None:
        self._tally.add(outcome, outcome.ended)
        if self._wanted is not None and len(self._tally.done) >= self._wanted:
            self._enough.set()
        if not self._stopping and connection.usable:
            connection.send(next(self._asks))
        elif not self._stopping:
            self._connections.discard(connection)
            task = asyncio.ensure_future(self._reconnect())
            self._reconnects.add(task)
            task.add_done_callback(self._reconnects.discard)
        else:
            self._leave()

    def _leave(self) -> None:
        self._busy -= 1
        if self._busy == 0:
            self._idle.set()

    async def _reconnect(self) -> None:
        """Take the place of a connection that the target closed."""
        while not self._stopping:
            try:
                connection = await connect(self._plan.url, self._done)
            except OSError:
                self._tally.errors["refused"] += 1
                await asyncio.sleep(0.05)
            else:
                self._connections.add(connection)
                connection.send(next(self._asks))
                return
        self._leave()


class OpenLoop:
    """Requests due at fixed times, over as many connections as that takes."""

    def __init__(self, plan: Plan, asks: Iterator[Ask]) -> None:
        self._plan = plan
        self._asks = asks
        self._tally: Tally
        self._free: list[Connection] = []
        self._due: deque[float] = deque()
        self._connections: set[Connection] = set()
        self._out = 0
        self._lags: list[float] = []
        self._paced = False
        self._idle = asyncio.Event()
        self._opening: set[asyncio.Task[None]] = set()

    async def run(self) -> dict[str, Any]:
        """Load the endpoint and say what happened, with how late the client itself sent (`send_lag_ms`)."""
        plan = self._plan
        for _ in range(OPEN_CONNECTIONS):
            await self._open()
        start = perf_counter() + 0.02
        self._tally = Tally(start + plan.warmup, start + plan.warmup + plan.seconds)
        times = list(due_times(plan, start))
        pacer = threading.Thread(target=self._pace, args=(times, asyncio.get_running_loop()), daemon=True)
        pacer.start()
        await asyncio.sleep(times[-1] - perf_counter() if times else 0)
        unfinished = not await within(DRAIN_S, self._idle)
        ended = max((done.ended for done in self._tally.done), default=0.0)
        report = self._tally.report(max(plan.seconds, ended - self._tally.begin))
        report |= {"unfinished": self._out if unfinished else 0, "send_lag_ms": spread(self._lags)}
        pacer.join()
        await close(self._connections)
        return report

    def _pace(self, times: list[float], loop: asyncio.AbstractEventLoop) -> None:
        """Wake the loop at each time. A thread, because the loop's own timers are a millisecond coarse."""
        for due in times:
            time.sleep(max(0.0, due - perf_counter()))
            loop.call_soon_threadsafe(self._arrive, due)
        loop.call_soon_threadsafe(self._all_arrived)

    def _all_arrived(self) -> None:
        self._paced = True
        self._settle()

    def _arrive(self, due: float) -> None:
        self._out += 1
        while self._free:
            connection = self._free.pop()
            if connection.usable:
                self._send(connection, due)
                return
            self._connections.discard(connection)  # closed by the target while idle
        self._due.append(due)
        if len(self._connections) + len(self._opening) < MAX_CONNECTIONS:
            task = asyncio.ensure_future(self._open())
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    def _send(self, connection: Connection, due: float) -> None:
        self._lags.append(perf_counter() - due)
        connection.send(next(self._asks), due)

    async def _open(self) -> None:
        try:
            connection = await connect(self._plan.url, self._done)
        except OSError:
            if self._due:
                self._fail(self._due.popleft())
            return
        self._connections.add(connection)
        self._take_back(connection)

    def _fail(self, due: float) -> None:
        self._tally.add(Outcome(due, due, error="refused"), due)
        self._out -= 1
        self._settle()

    def _done(self, connection: Connection, outcome: Outcome) -> None:
        self._tally.add(outcome, outcome.intended)
        self._out -= 1
        if connection.usable:
            self._take_back(connection)
        else:
            self._connections.discard(connection)
        self._settle()

    def _take_back(self, connection: Connection) -> None:
        if self._due:
            self._send(connection, self._due.popleft())
        else:
            self._free.append(connection)

    def _settle(self) -> None:
        if self._paced and self._out == 0:
            self._idle.set()


def due_times(plan: Plan, start: float) -> Iterator[float]:
    """When requests are due, from `start` through warm-up and window."""
    assert plan.rate is not None
    random_ = random.Random(plan.seed)
    now, end = start, start + plan.warmup + plan.seconds
    while True:
        now += random_.expovariate(plan.rate) if plan.arrivals == "poisson" else 1 / plan.rate
        if now >= end:
            return
        yield now


async def connect(url: str, on_done: Callable[[Connection, Outcome], None]) -> Connection:
    """A connection to `url`. Raises OSError."""
    parts = urlsplit(url)
    assert parts.hostname and parts.port, "URLs of benchmarks name host and port"
    _, connection = await asyncio.get_running_loop().create_connection(
        partial(Connection, on_done), parts.hostname, parts.port
    )
    return connection


async def close(connections: Iterable[Connection]) -> None:
    """Close what is still open."""
    for connection in tuple(connections):
        await connection.close()


async def within(seconds: float, event: asyncio.Event) -> bool:
    """Whether `event` is set within `seconds`."""
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True

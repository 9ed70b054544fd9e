"""Word from the workers that a slot is filled, past the engine's thread, which answers only between two steps.

A notice is a datagram with the ticket of the staging. One that is lost costs time and nothing else: who waits asks the
engine in the end.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
from collections import Counter

BYTES = 8


class Notices:
    """The receiving end, in the process of the API, for `workers` workers. Belongs to one event loop."""

    def __init__(self, path: str, workers: int) -> None:
        """Raises OSError."""
        self._workers = workers
        self._tickets = itertools.count(1)
        self._arrived: Counter[int] = Counter()
        self._complete: dict[int, asyncio.Event] = {}
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(path)
        asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)

    def expect(self) -> int:
        """A new ticket, to be given to every worker."""
        ticket = next(self._tickets)
        self._complete[ticket] = asyncio.Event()
        return ticket

    async def complete(self, ticket: int, within_s: float) -> bool:
        """Whether every worker has filled its slot, once that is so or `within_s` seconds have passed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._complete[ticket].wait()
        return self._complete[ticket].is_set()

    def forget(self, ticket: int) -> None:
        """Nobody waits for it any more."""
        del self._complete[ticket]
        self._arrived.pop(ticket, None)

    def close(self) -> None:
        """Receive nothing more."""
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._socket.close()

    def _read(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                ticket = int.from_bytes(self._socket.recv(BYTES), "big")
                if ticket in self._complete:
                    self._arrived[ticket] += 1
                    if self._arrived[ticket] == self._workers:
                        self._complete[ticket].set()


class Teller:
    """The sending end, in a worker. Any thread may use it."""

    def __init__(self, path: str) -> None:
        self._path = path

    def tell(self, ticket: int) -> None:
        """Send the ticket."""
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            sender.sendto(ticket.to_bytes(BYTES, "big"), self._path)

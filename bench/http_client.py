"""A keep-alive HTTP/1.1 client connection that does as little as it can and checks each answer to its last byte."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import cast

from bench.canned import STREAM_CHUNKS, TOKEN_MARK

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)
_LAST_CHUNK = b"\r\n0\r\n\r\n"
_EVENT = b"data: "


@dataclass(frozen=True, slots=True)
class Ask:
    """One request, ready to send. `tokens`: how many the answer must hold; None takes any number above zero."""

    payload: bytes
    stream: bool
    tokens: int | None = STREAM_CHUNKS


@dataclass(slots=True)
class Outcome:
    """What became of a request. Times are `perf_counter` seconds; `error` is a short reason, None for success."""

    intended: float
    sent: float
    first_event: float | None = None
    ended: float = 0.0
    error: str | None = None


class Connection(asyncio.Protocol):
    """Sends one request at a time. `on_done` is called once for each, when `usable` already tells whether to go on."""

    def __init__(self, on_done: Callable[[Connection, Outcome], None]) -> None:
        self.usable = False
        self._closed = asyncio.Event()
        self._on_done = on_done
        self._transport: asyncio.Transport
        self._ask: Ask | None = None
        self._outcome: Outcome
        self._reset()

    def _reset(self) -> None:
        self._buffer = bytearray()
        self._body_at = -1
        self._length = -1
        self._chunked = False

    def send(self, ask: Ask, intended: float | None = None) -> None:
        """Send `ask`, which was due at `intended` (default: now)."""
        now = perf_counter()
        self._ask = ask
        self._outcome = Outcome(now if intended is None else intended, now)
        self._transport.write(ask.payload)

    async def close(self) -> None:
        """Close the connection; a request in flight fails."""
        self._transport.abort()
        await self._closed.wait()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102 asyncio.Protocol's
        self._transport = cast("asyncio.Transport", transport)  # uvloop has a class of its own
        self.usable = True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        self.usable = False
        self._closed.set()
        if self._ask is not None:
            until_close = self._body_at >= 0 and self._length < 0 and not self._chunked
            self._finish(None if until_close else "disconnected")

    def data_received(self, data: bytes) -> None:  # noqa: D102
        ask = self._ask
        if ask is None:
            self._transport.close()
            return
        buffer = self._buffer
        buffer += data
        if self._body_at < 0 and not self._read_head():
            return
        if ask.stream and self._outcome.first_event is None and buffer.find(_EVENT, self._body_at) >= 0:
            self._outcome.first_event = perf_counter()
        if self._chunked:
            if buffer.endswith(_LAST_CHUNK):
                self._finish(None)
        elif 0 <= self._length <= len(buffer) - self._body_at:
            self._finish(None)

    def _read_head(self) -> bool:
        end = self._buffer.find(b"\r\n\r\n")
        if end < 0:
            return False
        head = bytes(self._buffer[: end + 2])
        self._body_at = end + 4
        if length := _LENGTH.search(head):
            self._length = int(length[1])
        self._chunked = _CHUNKED.search(head) is not None
        return True

    def _finish(self, error: str | None) -> None:
        """Check the answer, make room for the next request, then tell."""
        outcome, ask = self._outcome, self._ask
        assert ask is not None
        outcome.ended = perf_counter()
        outcome.error = error or self._flaw(ask)
        self._ask = None
        self._reset()
        self._on_done(self, outcome)

    def _flaw(self, ask: Ask) -> str | None:
        """What is wrong with the whole answer in the buffer, or None."""
        buffer = self._buffer
        status = buffer[9:12].decode("ascii", "replace")
        if status != "200":
            return f"status {status}"
        if _complete(buffer, ask):
            return None
        if self._chunked and _complete(_unchunked(buffer, self._body_at), ask):  # a token lay across two HTTP chunks
            return None
        return "incomplete answer"


def _complete(body: bytes | bytearray, ask: Ask) -> bool:
    if ask.stream and b"data: [DONE]" not in body:
        return False
    if ask.tokens is None:
        return b'"choices"' in body and b'"error"' not in body
    return body.count(TOKEN_MARK) == ask.tokens


def _unchunked(buffer: bytes | bytearray, start: int) -> bytes:
    pieces = []
    while (line := buffer.find(b"\r\n", start)) >= 0:
        size = int(bytes(buffer[start:line]).partition(b";")[0], 16)
        if size == 0:
            break
        pieces.append(bytes(buffer[line + 2 : line + 2 + size]))
        start = line + 4 + size
    return b"".join(pieces)

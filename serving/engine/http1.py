"""An HTTP/1.1 client connection for one purpose: POST a body, pass the answer's bytes on as they come.

A general client spends several hundred microseconds of CPU a request on what an engine never needs (redirects, cookies,
decompression, tracing). This one parses with httptools and does nothing else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import cast

import httptools

PAUSE_ABOVE = 1 << 18
MAX_HEAD_BYTES = 1 << 16


class ConnectionLost(ConnectionError):
    """The connection ended before the answer did. `untouched`: before any byte of it came."""

    def __init__(self, message: str, *, untouched: bool) -> None:
        super().__init__(message)
        self.untouched = untouched


class Silent(ConnectionError):
    """Nothing came for longer than allowed."""


class Answer:
    """One answer as it arrives. Awaited by one reader at a time."""

    __slots__ = ("_connection", "_loop", "_size", "_waiter", "complete", "error", "headers", "pieces", "status")

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None
        self._size = 0
        self.status = 0
        self.headers: dict[str, str] = {}
        self.pieces: deque[bytes] = deque()
        self.complete = False
        self.error: ConnectionError | None = None

    async def head(self) -> None:
        """Return once `status` and `headers` are there. Raises ConnectionError."""
        while not self.status:
            await self._wait()

    async def piece(self) -> bytes:
        """Return what has come since the last call; empty at the end. Raises ConnectionError."""
        while not self.pieces:
            if self.complete:
                return b""
            await self._wait()
        data = self.pieces.popleft() if len(self.pieces) == 1 else self._take()
        if self._size > PAUSE_ABOVE:
            self._connection.resume()
        self._size = 0
        return data

    async def whole(self) -> bytes:
        """The body to its end. Raises ConnectionError."""
        body = await self.piece()
        if self.complete and not self.pieces:
            return body
        parts = [body]
        while piece := await self.piece():
            parts.append(piece)
        return b"".join(parts)

    def _take(self) -> bytes:
        data = b"".join(self.pieces)
        self.pieces.clear()
        return data

    async def _wait(self) -> None:
        if self.error is not None:
            raise self.error
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def add(self, data: bytes) -> None:
        """Take a piece of the body from the connection."""
        self.pieces.append(data)
        self._size += len(data)
        if self._size > PAUSE_ABOVE:
            self._connection.pause()
        self.wake()

    def fail(self, error: ConnectionError) -> None:
        """End with `error` once what has come is read."""
        self.error = error
        self.wake()

    def wake(self) -> None:
        """Let the reader look again."""
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Connection(asyncio.Protocol):
    """One connection, with at most one request on it at a time. `on_idle` is called when it can take the next."""

    def __init__(self, on_idle: Callable[[Connection], None], on_closed: Callable[[Connection], None]) -> None:
        self._on_idle = on_idle
        self._on_closed = on_closed
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._headers: dict[str, str] = {}
        self._head_bytes = 0
        self.active_at = 0.0
        """when a byte was last sent or received, by the loop's clock"""

    @property
    def closed(self) -> bool:
        """Whether it can take no further request."""
        return self._transport is None or self._transport.is_closing()

    def send(self, data: bytes) -> Answer:
        """Send a whole request."""
        if self._transport is None or self._answer is not None:
            raise ConnectionLost("the connection is closed or busy", untouched=True)
        self.active_at = self._loop.time()
        self._answer = answer = Answer(self, self._loop)
        self._headers = answer.headers
        self._head_bytes = 0
        self._transport.write(data)
        return answer

    def abort(self) -> None:
        """Close at once; the peer sees the client leave."""
        if self._transport is not None:
            self._transport.abort()

    def fail(self, error: ConnectionError) -> None:
        """End the answer in progress with `error`, and the connection."""
        answer, self._answer = self._answer, None
        if answer is not None and not answer.complete:
            answer.fail(error)
        self.abort()

    def pause(self) -> None:
        """Read no further: the reader is slower than the engine."""
        if self._transport is not None and self._transport.is_reading():
            self._transport.pause_reading()

    def resume(self) -> None:
        """Read on."""
        if self._transport is not None and not self._transport.is_closing() and not self._transport.is_reading():
            self._transport.resume_reading()
            self.active_at = self._loop.time()

    @property
    def waits(self) -> bool:
        """Whether the engine is expected to send something."""
        return self._answer is not None and self._transport is not None and self._transport.is_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin; called by the event loop."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        """Parse; called by the event loop."""
        self.active_at = self._loop.time()
        if self._answer is None:
            self.abort()
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, ValueError) as error:
            self.fail(ConnectionLost(f"not HTTP: {error}", untouched=False))

    def connection_lost(self, exc: Exception | None) -> None:
        """End; called by the event loop."""
        self._transport = None
        answer, self._answer = self._answer, None
        if answer is not None and not answer.complete:
            if answer.status and exc is None and not is_framed(answer.headers):
                answer.complete = True
                answer.wake()
            else:
                answer.fail(ConnectionLost("the connection ended before the answer", untouched=not answer.status))
        self._on_closed(self)

    def on_message_begin(self) -> None:
        """Refuse an answer that nobody asked for; called by the parser."""
        if self._answer is None:
            self._headers = {}
            self.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a header; called by the parser."""
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            raise ValueError("the head is too long")
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        before = self._headers.get(key)
        self._headers[key] = text if before is None else f"{before}, {text}"

    def on_headers_complete(self) -> None:
        """Publish the head unless it is an interim one; called by the parser."""
        status = self._parser.get_status_code()
        if status < 200:
            self._headers.clear()
        elif self._answer is not None:
            self._answer.status = status
            self._answer.wake()

    def on_body(self, body: bytes) -> None:
        """Take a piece of the body; called by the parser."""
        if self._answer is not None:
            self._answer.add(body)

    def on_message_complete(self) -> None:
        """End the answer; called by the parser."""
        answer = self._answer
        if answer is None or not answer.status:
            return
        self._answer = None
        answer.complete = True
        answer.wake()
        if self._parser.should_keep_alive() and not self.closed:
            self.resume()
            self._on_idle(self)
        else:
            self.abort()


def is_framed(headers: dict[str, str]) -> bool:
    """Whether the end of the body is told within it, rather than by the end of the connection."""
    return "content-length" in headers or "chunked" in headers.get("transfer-encoding", "").lower()

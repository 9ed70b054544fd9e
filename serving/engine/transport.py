"""HTTP to one engine: one pool of kept-alive connections, bytes passed as they are.

Everything that can go wrong below HTTP becomes EngineUnavailable or EngineTimeout. Leaving a response before its last
byte closes the connection, which is how vLLM is told to stop working on it.

A connection that the engine closes while it lies idle can race with a request sent on it. With our own engine that
cannot be: it keeps idle connections for ten times as long as we do. Elsewhere (`retry_stale`) a request is sent a
second time, once and on a new connection, if a kept one closed within a second with no byte of an answer; inference
has no side effects, so even one that was received and lost may run again.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from serving.engine.http1 import Answer, Connection, ConnectionLost, Silent
from serving.errors import EngineTimeout, EngineUnavailable, ServingError

KEEPALIVE_S = 60.0
CONNECT_TIMEOUT_S = 10.0
STALE_WITHIN_S = 1.0
HTTP_OK = 200
METRICS_TIMEOUT_S = 5.0
SWEEP_EVERY_S = 1.0
DEFAULT_HEADERS = {"content-type": "application/json", "accept-encoding": "identity", "user-agent": "loradock"}
UNSAFE = re.compile(r"[\x00-\x20\x7f]")


class Transport:
    """Connections to one engine, by TCP or by a unix socket. Belongs to one event loop; opens nothing before use."""

    def __init__(
        self,
        name: str,
        base_url: str,
        *,
        request_timeout_s: float,
        headers: Mapping[str, str] | None = None,
        keepalive_s: float = KEEPALIVE_S,
        retry_stale: bool = False,
    ) -> None:
        """`request_timeout_s` is the longest silence within one request."""
        self.name = name
        self.base_url = base_url
        self.socket_path: str | None = None
        self.retry_stale = retry_stale
        self.headers = DEFAULT_HEADERS | dict(headers or {})
        self._keepalive_s = keepalive_s
        self._request_timeout_s = request_timeout_s
        self._url = urlsplit(base_url)
        self._head_end = head_lines({"host": self._url.netloc} | self.headers)
        self._connections: set[Connection] = set()
        self._idle: list[Connection] = []
        self._sweep: asyncio.TimerHandle | None = None

    def open(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> OpenRequest:
        """POST `body`; see `Engine.open`."""
        return OpenRequest(self, self.request("POST", path, body, headers))

    async def fetch(
        self, method: str, path: str, *, body: bytes = b"", timeout_s: float | None = None
    ) -> tuple[int, bytes]:
        """Status and whole body of one request, within `timeout_s` seconds. Raises EngineUnavailable, EngineTimeout."""
        try:
            async with asyncio.timeout(timeout_s):
                async with OpenRequest(self, self.request(method, path, body, None)) as response:
                    return response.status, await response.read()
        except TimeoutError as error:
            raise EngineTimeout(f"engine {self.name} has not answered within {timeout_s:g} s") from error

    async def fetch_metrics(self, timeout_s: float = METRICS_TIMEOUT_S) -> bytes:
        """The engine's Prometheus text; empty where it has none or does not answer."""
        try:
            status, text = await self.fetch("GET", "/metrics", timeout_s=timeout_s)
        except (EngineUnavailable, EngineTimeout):
            return b""
        return text if status == HTTP_OK else b""

    async def move(self, socket_path: str) -> None:
        """Talk to a new unix socket from now on; what is in flight on the old one ends."""
        await self.close()
        self.socket_path = socket_path

    async def close(self) -> None:
        """Close every connection; what is in flight fails."""
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        for connection in tuple(self._connections):
            connection.fail(ConnectionLost("the connection was closed", untouched=False))
        self._idle.clear()
        await asyncio.sleep(0)

    def request(self, method: str, path: str, body: bytes, headers: Mapping[str, str] | None) -> bytes:
        """The bytes of a request. Raises ValueError for a path or header that would break out of its line."""
        if UNSAFE.search(path):
            raise ValueError("a path must not hold white space or control characters")
        more = head_lines(headers) if headers else ""
        length = len(body)
        head = f"{method} {self._url.path}{path} HTTP/1.1\r\n{more}{self._head_end}content-length: {length}\r\n\r\n"
        return head.encode("latin-1") + body

    def kept(self) -> Connection | None:
        """An idle connection that has not grown too old, the latest used first."""
        oldest = asyncio.get_running_loop().time() - self._keepalive_s
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and connection.active_at >= oldest:
                return connection
            connection.abort()
        return None

    async def connect(self) -> Connection:
        """A new connection. Raises OSError, TimeoutError."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(CONNECT_TIMEOUT_S):
            if self.socket_path is not None:
                _, connection = await loop.create_unix_connection(self._new, self.socket_path)
            else:
                secure = self._url.scheme == "https"
                port = self._url.port or (443 if secure else 80)
                context = ssl.create_default_context() if secure else None
                _, connection = await loop.create_connection(self._new, self._url.hostname or "", port, ssl=context)
        self._connections.add(connection)
        if self._sweep is None:
            self._plan_sweep(loop)
        return connection

    def _new(self) -> Connection:
        return Connection(self._idle.append, self._connections.discard)

    def _plan_sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        self._sweep = loop.call_later(min(SWEEP_EVERY_S, self._request_timeout_s / 4), self._end_silent, loop)

    def _end_silent(self, loop: asyncio.AbstractEventLoop) -> None:
        """End the requests that have waited too long, and the connections that have been idle too long."""
        now = loop.time()
        for connection in tuple(self._connections):
            if connection.waits and now - connection.active_at > self._request_timeout_s:
                connection.fail(Silent("nothing came for too long"))
        too_old = now - self._keepalive_s
        while self._idle and self._idle[0].active_at < too_old:
            self._idle.pop(0).abort()
        self._sweep = None
        if self._connections:
            self._plan_sweep(loop)


class OpenRequest:
    """One request; entering it sends and waits for the head of the answer."""

    __slots__ = ("_answer", "_connection", "_data", "_transport")

    def __init__(self, transport: Transport, data: bytes) -> None:
        self._transport = transport
        self._data = data
        self._connection: Connection | None = None
        self._answer: Answer | None = None

    async def __aenter__(self) -> TransportResponse:
        transport = self._transport
        kept = transport.kept()
        try:
            connection = kept or await transport.connect()
            try:
                answer = await self._send(connection)
            except ConnectionLost as error:
                if kept is None or not transport.retry_stale or not self._was_stale(error, connection):
                    raise
                answer = await self._send(await transport.connect())
        except (OSError, TimeoutError) as error:
            raise translate(transport.name, error) from error
        return TransportResponse(transport.name, answer)

    async def _send(self, connection: Connection) -> Answer:
        self._connection = connection
        self._answer = answer = connection.send(self._data)
        try:
            await answer.head()
        except BaseException:
            connection.abort()
            raise
        return answer

    def _was_stale(self, error: ConnectionLost, connection: Connection) -> bool:
        return error.untouched and asyncio.get_running_loop().time() - connection.active_at < STALE_WITHIN_S

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._connection is not None and self._answer is not None and not self._answer.complete:
            self._connection.abort()


class TransportResponse:
    """An answer whose body has not been read; see `EngineResponse`. Names of `headers` are in lower case."""

    __slots__ = ("_answer", "_name", "headers", "status")

    def __init__(self, name: str, answer: Answer) -> None:
        self._name = name
        self._answer = answer
        self.status = answer.status
        self.headers: Mapping[str, str] = answer.headers

    async def read(self) -> bytes:
        """The whole body."""
        try:
            return await self._answer.whole()
        except OSError as error:
            raise translate(self._name, error) from error

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives."""
        return Chunks(self._name, self._answer)


class Chunks:
    """Pieces of a body; a class because a generator costs more and must be closed."""

    __slots__ = ("_answer", "_name")

    def __init__(self, name: str, answer: Answer) -> None:
        self._name = name
        self._answer = answer

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        try:
            piece = await self._answer.piece()
        except OSError as error:
            raise translate(self._name, error) from error
        if not piece:
            raise StopAsyncIteration
        return piece


def head_lines(headers: Mapping[str, str]) -> str:
    """Header lines. Raises ValueError for a name or value that would break out of its line."""
    for name, value in headers.items():
        if UNSAFE.search(name) or ":" in name or "\r" in value or "\n" in value or "\0" in value:
            raise ValueError(f"header {name!r} cannot be sent")
    return "".join([f"{name}: {value}\r\n" for name, value in headers.items()])


def translate(name: str, error: BaseException) -> ServingError:
    """The error of ours that `error` means to a client."""
    if isinstance(error, Silent):
        return EngineTimeout(f"engine {name} has not sent anything for too long")
    if isinstance(error, TimeoutError):
        return EngineUnavailable(f"engine {name} does not accept connections")
    if isinstance(error, ConnectionLost):
        return EngineUnavailable(f"engine {name} went away while it answered")
    return EngineUnavailable(f"engine {name} cannot be reached")

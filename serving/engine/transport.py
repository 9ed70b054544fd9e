"""HTTP to one engine: one pool of kept-alive connections, bytes passed as they are.

Everything that can go wrong below HTTP becomes EngineUnavailable or EngineTimeout. Leaving a response before its last
byte closes the connection, which is how vLLM is told to stop working on it.

A connection that the engine closes while it lies idle can race with a request sent on it. With our own engine that
cannot be: it keeps idle connections for ten times as long as we do. Elsewhere (`retry_stale`) a request is sent a
second time, once, if the connection closed within a second with no byte of an answer; inference has no side effects,
so even one that was received and lost may run again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Self

import aiohttp

from serving.errors import EngineTimeout, EngineUnavailable, ServingError

KEEPALIVE_S = 60.0
CONNECT_TIMEOUT_S = 10.0
STALE_WITHIN_S = 1.0
HTTP_OK = 200
METRICS_TIMEOUT_S = 5.0
READ_BUFFER = 1 << 17
MAX_LINE = 1 << 16
DEFAULT_HEADERS = {"content-type": "application/json", "accept-encoding": "identity", "user-agent": "loradock"}


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
        """`request_timeout_s` is the longest wait for a head, sending included, and for each further piece."""
        self.name = name
        self.base_url = base_url
        self.socket_path: str | None = None
        self.retry_stale = retry_stale
        self.headers = DEFAULT_HEADERS | dict(headers or {})
        self._keepalive_s = keepalive_s
        self.request_timeout_s = request_timeout_s
        self._session: aiohttp.ClientSession | None = None
        self._bodies: set[aiohttp.StreamReader] = set()
        """those that are being read"""

    @property
    def session(self) -> aiohttp.ClientSession:
        """The pool, opened on first use."""
        if self._session is None:
            self._session = self._open_session()
        return self._session

    def _open_session(self) -> aiohttp.ClientSession:
        connector: aiohttp.BaseConnector
        if self.socket_path is not None:
            connector = aiohttp.UnixConnector(self.socket_path, limit=0, keepalive_timeout=self._keepalive_s)
        else:
            connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=self._keepalive_s)
        return aiohttp.ClientSession(
            connector=connector,
            headers=self.headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            trust_env=False,
            read_bufsize=READ_BUFFER,
            max_line_size=MAX_LINE,
            max_field_size=MAX_LINE,
            # The rest is watched by `OpenRequest` and `Chunks`: `sock_read` would set a timer for each piece.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
        )

    def open(self, path: str, body: bytes, headers: Mapping[str, str] | None = None) -> OpenRequest:
        """POST `body`; see `Engine.open`."""
        return OpenRequest(self, path, body, headers)

    async def fetch(
        self, method: str, path: str, *, body: bytes | None = None, timeout_s: float | None = None
    ) -> tuple[int, bytes]:
        """Status and whole body of one request, within `timeout_s` seconds. Raises EngineUnavailable, EngineTimeout."""
        limit = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_TIMEOUT_S)
        try:
            async with self.session.request(
                method, self.base_url + path, data=body, timeout=limit, allow_redirects=False
            ) as response:
                self.track(response.content)
                try:
                    return response.status, await response.read()
                finally:
                    self.untrack(response.content)
        except TimeoutError as error:
            raise EngineTimeout(f"engine {self.name} has not answered within {timeout_s} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise translate(self.name, error) from error

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
        """Close every connection. Who waits for a head or reads a body gets EngineUnavailable.

        What has come of a body is dropped, unless that is all of it.
        """
        session, self._session = self._session, None
        if session is not None:
            for body in tuple(self._bodies):  # aiohttp tells only those who wait for a head
                if not body.is_eof():
                    body.set_exception(aiohttp.ClientConnectionError())
            await session.close()

    def track(self, body: aiohttp.StreamReader) -> None:
        """Let `close` end the reading of `body`."""
        self._bodies.add(body)

    def untrack(self, body: aiohttp.StreamReader) -> None:
        """`body` is read, or is not wanted any more."""
        self._bodies.discard(body)

    def retries(self, error: aiohttp.ClientConnectionError, session: aiohttp.ClientSession, sent_at: float) -> bool:
        """Whether what was sent on `session` is sent again; not if it is `close` that ended it."""
        within = time.monotonic() - sent_at < STALE_WITHIN_S
        return self.retry_stale and session is self._session and is_stale(error) and within


class OpenRequest:
    """One request; entering it sends and waits for the head of the answer."""

    __slots__ = ("_answer", "_body", "_headers", "_path", "_transport")

    def __init__(self, transport: Transport, path: str, body: bytes, headers: Mapping[str, str] | None) -> None:
        self._transport = transport
        self._path = path
        self._body = body
        self._headers = headers
        self._answer: TransportResponse | None = None

    async def __aenter__(self) -> TransportResponse:
        transport = self._transport
        session, sent_at = transport.session, time.monotonic()
        try:
            response = await self._send()
        except aiohttp.ClientConnectionError as error:
            if not transport.retries(error, session, sent_at):
                raise translate(transport.name, error) from error
            response = await self._send_again()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise translate(transport.name, error) from error
        transport.track(response.content)
        self._answer = TransportResponse(transport, response)
        return self._answer

    async def _send(self) -> aiohttp.ClientResponse:
        transport = self._transport
        async with asyncio.timeout(transport.request_timeout_s):
            return await transport.session.post(
                transport.base_url + self._path, data=self._body, headers=self._headers, allow_redirects=False
            )

    async def _send_again(self) -> aiohttp.ClientResponse:
        try:
            return await self._send()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise translate(self._transport.name, error) from error

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._answer is not None:
            self._transport.untrack(self._answer.body)
            self._answer.close()


class TransportResponse:
    """An answer whose body has not been read; see `EngineResponse`."""

    __slots__ = ("_chunks", "_response", "body", "headers", "status")

    def __init__(self, transport: Transport, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.body = response.content
        self._chunks = Chunks(transport.name, response.content, transport.request_timeout_s)
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers

    async def read(self) -> bytes:
        """The whole body."""
        return b"".join([piece async for piece in self.chunks()])

    def chunks(self) -> AsyncIterator[bytes]:
        """The body as it arrives."""
        return self._chunks

    def close(self) -> None:
        """Keep the connection for others after the last byte, else end it."""
        self._chunks.close()
        if self.body.is_eof():
            self._response.release()
        else:
            self._response.close()


class Chunks:
    """Pieces of a body; a class because a generator costs more and must be closed.

    One timer watches for silence: setting one for each piece, as `asyncio.timeout` and aiohttp's own limit do, took a
    fifth of the gateway's processor time in streams. That limit does not cover a body that cannot be parsed, either.
    """

    __slots__ = ("_content", "_had", "_loop", "_name", "_silence_s", "_since", "_timer")

    def __init__(self, name: str, content: aiohttp.StreamReader, silence_s: float) -> None:
        self._name = name
        self._content = content
        self._silence_s = silence_s
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        """when the present wait for the engine began; None while the reader is busy elsewhere"""
        self._had = 0
        """bytes that had come by then"""
        self._timer: asyncio.TimerHandle | None = None

    def close(self) -> None:
        """Stop watching."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self._since = self._loop.time()
        self._had = self._content.total_bytes
        if self._timer is None:
            self._timer = self._loop.call_later(self._silence_s, self._look)
        try:
            chunk = await self._content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.close()
            # What timed out is kept by the reader: with its traceback, which holds the reader, they would be a cycle.
            raise translate(self._name, error) from error.with_traceback(None)
        except RuntimeError as error:  # aiohttp's, where the connection went while the reader was busy
            self.close()
            raise translate(self._name, error) from error
        finally:
            self._since = None
        if not chunk:
            self.close()
            raise StopAsyncIteration
        return chunk

    def _look(self) -> None:
        """End a wait that has been too long; watch on if it has not, and not before the next one if there is none."""
        self._timer = None
        if self._since is None:
            return
        left = self._since + self._silence_s - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        elif self._content.total_bytes == self._had:  # else a piece came in this very turn of the loop
            self._content.set_exception(TimeoutError())


def is_stale(error: aiohttp.ClientConnectionError) -> bool:
    """Whether the peer closed the connection before any byte of an answer."""
    return isinstance(error, aiohttp.ServerDisconnectedError) or (
        isinstance(error, aiohttp.ClientOSError) and isinstance(error.__cause__ or error, ConnectionResetError)
    )


def translate(name: str, error: BaseException) -> ServingError:
    """The error of ours that `error` means to a client."""
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return EngineUnavailable(f"engine {name} does not accept connections")
    if isinstance(error, TimeoutError):
        return EngineTimeout(f"engine {name} has not sent anything for too long")
    if isinstance(error, aiohttp.ClientConnectorError):
        return EngineUnavailable(f"engine {name} cannot be reached")
    return EngineUnavailable(f"engine {name} went away while it answered")

"""One HTTP exchange at ASGI level: what came, and an answer that knows whether it has begun."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from types import TracebackType

from starlette.types import Receive, Scope, Send

from serving.errors import ServingError

JSON = b"application/json"
CLIENT_GONE = 499
"""status in metrics of a request whose client went away"""
_REQUEST_ID_CHARS = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.")


class ClientGone(Exception):
    """The client went away before its request was whole; there is nobody to answer."""


class Reply:
    """The answer on its way out.

    `route` holds the `x-loradock-*` headers as far as they are known; `status` is 0 until the answer begins, and the
    error's once a stream has failed.
    """

    __slots__ = ("_send", "failed", "finished", "headers", "route", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self.status = 0
        self.failed = False
        self.finished = False
        self.headers: list[tuple[bytes, bytes]] = [(b"x-request-id", request_id.encode())]
        self.route: dict[bytes, bytes] = {}

    async def whole(self, status: int, body: bytes, content_type: bytes = JSON) -> None:
        """Send a complete answer."""
        await self._start(status, content_type, [(b"content-length", str(len(body)).encode())])
        self.finished = True
        await self._send({"type": "http.response.body", "body": body})

    async def begin_stream(self, status: int, content_type: bytes) -> None:
        """Send the head of a stream."""
        # Proxies in front must not collect a stream.
        await self._start(status, content_type, [(b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")])

    async def chunk(self, data: bytes) -> None:
        """Send a piece of the stream."""
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end_stream(self, data: bytes = b"") -> None:
        """Send the last piece."""
        self.finished = True
        await self._send({"type": "http.response.body", "body": data})

    async def fail(self, error: ServingError) -> None:
        """Send `error`: as an answer, or as an event when a stream has begun; nothing when the answer is complete."""
        if self.finished:
            return
        self.failed = True
        if self.status:
            self.status = error.status
            await self.end_stream(error.sse_event())
            return
        self.headers.extend((name.encode(), value.encode()) for name, value in error.headers.items())
        await self.whole(error.status, error.envelope())

    async def _start(self, status: int, content_type: bytes, more: list[tuple[bytes, bytes]]) -> None:
        self.status = status
        headers = [(b"content-type", content_type), *more, *self.headers, *self.route.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})


class WhileConnected:
    """`async with`: the body is cancelled when the client goes away; `gone` tells so afterwards.

    The request must have been read to its end: the next message can only be the disconnect.
    """

    __slots__ = ("_receive", "_serving", "_watch", "gone")

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.gone = False

    async def __aenter__(self) -> WhileConnected:
        serving = asyncio.current_task()
        assert serving is not None  # noqa: S101 - a coroutine that runs has a task
        self._serving = serving
        self._watch = asyncio.get_running_loop().create_task(self._await_disconnect())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self._watch.cancel()
        serving = self._serving
        del self._watch, self._serving  # tasks refer to their coroutines, and those to this: a cycle for the collector
        if self.gone:
            # Swallow the cancellation, unless somebody else (a shutdown, say) has cancelled the request as well.
            return serving.uncancel() == 0 and kind is asyncio.CancelledError
        return False

    async def _await_disconnect(self) -> None:
        serving = self._serving
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.gone = True
        serving.cancel()


def headers_of(scope: Scope) -> Mapping[bytes, bytes]:
    """Request headers by lower-case name; of repeated ones the last."""
    return dict(scope["headers"])


def text(value: bytes | None) -> str | None:
    """A header's value as text, None where it is absent or empty."""
    return value.decode("latin-1") if value else None


def request_id(headers: Mapping[bytes, bytes]) -> str:
    """The client's `x-request-id` where it is plain and short, else a new one."""
    given = headers.get(b"x-request-id")
    if given and len(given) <= 128 and _REQUEST_ID_CHARS.issuperset(given):
        return given.decode()
    return "req_" + secrets.token_hex(12)

"""The least that a Python proxy can do: a bare ASGI app that forwards each request and streams the answer back.

    python -m bench.passthrough UPSTREAM [--port 0]

No routing, no checks, no metrics: what it costs is the floor for a gateway on the same stack (uvicorn, aiohttp,
uvloop). Prints its URL on the first line.
"""

from __future__ import annotations

import argparse
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import aiohttp
import uvicorn
import uvloop

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_FORWARDED = frozenset({b"content-type", b"accept", b"x-agent"})


class PassThrough:
    """The ASGI app."""

    def __init__(self, upstream: str, session: aiohttp.ClientSession) -> None:
        self._upstream = upstream
        self._session = session

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Forward one HTTP request."""
        if scope["type"] != "http":
            return
        body = await _read(receive)
        headers = {name.decode(): value.decode() for name, value in scope["headers"] if name in _FORWARDED}
        url = self._upstream + scope["path"]
        async with self._session.request(scope["method"], url, data=body, headers=headers) as answer:
            content_type = answer.headers.get("content-type", "application/octet-stream").encode()
            kept = [(b"content-type", content_type)]
            if answer.content_length is not None:
                kept.append((b"content-length", str(answer.content_length).encode()))
            await send({"type": "http.response.start", "status": answer.status, "headers": kept})
            async for chunk in answer.content.iter_any():
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            await send({"type": "http.response.body"})


async def _read(receive: Receive) -> bytes:
    pieces = []
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(pieces)


async def _main(upstream: str, port: int) -> None:
    listener = socket.create_server(("127.0.0.1", port), backlog=1024)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), auto_decompress=False) as session:
        app = PassThrough(upstream, session)
        config = uvicorn.Config(app, lifespan="off", access_log=False, log_level="warning", timeout_keep_alive=60)
        print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        await uvicorn.Server(config).serve(sockets=[listener])


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="bench.passthrough", description=__doc__.splitlines()[0])
    parser.add_argument("upstream", help="base URL to forward to")
    parser.add_argument("--port", type=int, default=0, help="port on loopback; 0 picks a free one")
    arguments = parser.parse_args()
    uvloop.run(_main(arguments.upstream, arguments.port))


if __name__ == "__main__":
    main()

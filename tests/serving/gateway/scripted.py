"""An upstream that does what a test says: raw HTTP on a socket, so that any fault can be had."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from bench.canned import STREAM_HEAD, response

MODEL = "scripted"


@dataclass(frozen=True)
class Request:
    """What arrived. `headers` by lower-case name; `body` as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


Script = Callable[[Request, asyncio.StreamWriter], Awaitable[None]]


async def say_ok(request: Request, writer: asyncio.StreamWriter) -> None:
    message = {"role": "assistant", "content": "fine"}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    writer.write(answer({"id": "1", "model": request.json["model"], "choices": [choice]}))


class Scripted:
    """A stock vLLM server as far as probes and loads go; inference does `script`. `left` is set when a client hangs up
    while the script runs."""

    def __init__(self) -> None:
        self.script: Script = say_ok
        self.load_script: Script | None = None
        self.asked: list[Request] = []
        self.adapters: dict[str, str] = {}
        self.loads = 0
        self.began = asyncio.Event()
        self.left = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                await self._answer(await _read(reader), reader, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def _answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if request.path == "/v1/models":
            cards = [{"id": MODEL, "root": MODEL, "parent": None, "max_model_len": 1024}]
            cards += [{"id": name, "root": path, "parent": MODEL} for name, path in self.adapters.items()]
            writer.write(answer({"object": "list", "data": cards}))
        elif request.path == "/v1/load_lora_adapter":
            self.loads += 1
            if self.load_script is not None:
                await self.load_script(request, writer)
                return
            self.adapters[request.json["lora_name"]] = request.json["lora_path"]
            writer.write(response("200 OK", b"Success"))
        elif request.path == "/v1/unload_lora_adapter":
            self.adapters.pop(request.json["lora_name"], None)
            writer.write(response("200 OK", b"Success"))
        elif request.path == "/metrics":
            writer.write(response("200 OK", b"", "text/plain"))
        else:
            self.asked.append(request)
            await self._run_script(request, reader, writer)

    async def _run_script(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = asyncio.ensure_future(self.script(request, writer))
        hung_up = asyncio.ensure_future(reader.read(1))
        self.began.set()
        done, _ = await asyncio.wait({script, hung_up}, return_when=asyncio.FIRST_COMPLETED)
        hung_up.cancel()
        if script in done:
            with contextlib.suppress(asyncio.CancelledError, ConnectionError):
                await hung_up
            if isinstance(script.exception(), ConnectionError):
                self.left.set()
            script.result()
        else:
            script.cancel()
            self.left.set()
            raise ConnectionResetError


def answer(content: Any, status: str = "200 OK") -> bytes:
    """A whole JSON answer."""
    return response(status, json.dumps(content).encode())


def chunk(data: bytes) -> bytes:
    """`data` as one HTTP chunk."""
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def event(content: Any) -> bytes:
    """A server-sent event."""
    return b"data: " + (content if isinstance(content, bytes) else json.dumps(content).encode()) + b"\n\n"


def delta(text: str, **more: Any) -> bytes:
    """The event of one streamed token."""
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": None}
    return event({"id": "1", "object": "chat.completion.chunk", "model": MODEL, "choices": [choice], **more})


def stream(*pieces: bytes, ends: bool = True) -> Script:
    """A script that streams `pieces`, each in a chunk and a write of its own; without `ends` the connection breaks."""

    async def run(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for piece in pieces:
            writer.write(chunk(piece))
            await writer.drain()
            await asyncio.sleep(0)
        if ends:
            writer.write(b"0\r\n\r\n")
        else:
            writer.close()

    return run


def whole(raw: bytes) -> Script:
    """A script that writes a complete HTTP response."""

    async def run(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(raw)

    return run


async def never(request: Request, writer: asyncio.StreamWriter) -> None:
    """A script that says nothing, until the client hangs up."""
    await asyncio.get_running_loop().create_future()


async def _read(reader: asyncio.StreamReader) -> Request:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
    body = await reader.readexactly(int(headers.get("content-length", 0)))
    return Request(head[0].split(" ")[1], headers, body)


@contextlib.asynccontextmanager
async def serving(upstream: Scripted) -> AsyncIterator[str]:
    """Serve on loopback within the context; yields the base URL."""
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(upstream.serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

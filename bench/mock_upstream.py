"""An OpenAI-compatible upstream that costs almost nothing, so that a gateway's own cost shows.

    python -m bench.mock_upstream [--port 0] [--latency-ms 0] [--chunk-delay-ms 0] [--tokens 64]

Prints its URL on the first line. It answers as a stock vLLM server does (`/v1/models`, `/v1/chat/completions`,
`/v1/completions`, `/v1/load_lora_adapter`, `/v1/unload_lora_adapter`, `/health`, `/version`, `/metrics`), with canned
bytes: the same number of tokens whatever is asked, each streamed as an event, an HTTP chunk and a write of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import re
import signal
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import cast

import msgspec
import uvloop

from bench import canned

BASE = "mock-base"
MAX_REQUEST = 64 << 20

_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close", re.IGNORECASE)
_NOT_FOUND = canned.error("404 Not Found", "NotFoundError", "Not Found")


class _StreamOptions(msgspec.Struct, gc=False):
    include_usage: bool = False


class _Ask(msgspec.Struct, gc=False):
    """What the mock reads of a request."""

    model: str = BASE
    stream: bool = False
    stream_options: _StreamOptions | None = None


class _Lora(msgspec.Struct):
    lora_name: str
    lora_path: str = ""


class Upstream:
    """The mock's state: what it serves and what it has seen."""

    def __init__(self, latency_s: float = 0.0, chunk_delay_s: float = 0.0, tokens: int = canned.STREAM_CHUNKS) -> None:
        self.tokens = tokens
        self.latency_s = latency_s
        self.chunk_delay_s = chunk_delay_s
        self.running = 0
        self.requests = 0
        self.aborted = 0
        self.adapters: dict[str, str] = {}
        self._answers: dict[tuple[bytes, str], canned.Answer] = {}
        self._read_ask = msgspec.json.Decoder(_Ask).decode
        self._read_lora = msgspec.json.Decoder(_Lora).decode
        self._routes: dict[tuple[bytes, bytes], Callable[[bytes], bytes]] = {
            (b"POST", b"/v1/load_lora_adapter"): self._load,
            (b"POST", b"/v1/unload_lora_adapter"): self._unload,
            (b"GET", b"/v1/models"): self._models,
            (b"GET", b"/metrics"): self._metrics,
            (b"GET", b"/health"): lambda _: canned.response("200 OK", b""),
            (b"GET", b"/version"): lambda _: canned.response("200 OK", b'{"version":"0.32.0"}'),
        }

    def answer(self, path: bytes, body: bytes) -> tuple[canned.Answer, _Ask] | bytes:
        """The answer to a generation request, or a complete error response."""
        try:
            ask = self._read_ask(body)
        except msgspec.MsgspecError as problem:
            return canned.error("400 Bad Request", "BadRequestError", str(problem))
        if ask.model != BASE and ask.model not in self.adapters:
            return canned.error("404 Not Found", "NotFoundError", f"The model `{ask.model}` does not exist.")
        answer = self._answers.get((path, ask.model))
        if answer is None:
            make = canned.chat_answer if path == b"/v1/chat/completions" else canned.text_answer
            answer = self._answers[path, ask.model] = make(ask.model, self.tokens)
        return answer, ask

    def control(self, method: bytes, path: bytes, body: bytes) -> bytes:
        """The complete response of every other route."""
        handler = self._routes.get((method, path))
        return handler(body) if handler else _NOT_FOUND

    def _load(self, body: bytes) -> bytes:
        try:
            lora = self._read_lora(body)
        except msgspec.MsgspecError as problem:
            return canned.error("400 Bad Request", "BadRequestError", str(problem))
        if lora.lora_name in self.adapters:
            message = f"The lora adapter '{lora.lora_name}' has already been loaded."
            return canned.error("400 Bad Request", "InvalidUserInput", message)
        self.adapters[lora.lora_name] = lora.lora_path
        return canned.response("200 OK", f"Success: LoRA adapter '{lora.lora_name}' added successfully.".encode())

    def _unload(self, body: bytes) -> bytes:
        try:
            lora = self._read_lora(body)
        except msgspec.MsgspecError as problem:
            return canned.error("400 Bad Request", "BadRequestError", str(problem))
        if self.adapters.pop(lora.lora_name, None) is None:
            message = f"The lora adapter '{lora.lora_name}' cannot be found."
            return canned.error("404 Not Found", "NotFoundError", message)
        return canned.response("200 OK", f"Success: LoRA adapter '{lora.lora_name}' removed successfully.".encode())

    def _models(self, _: bytes) -> bytes:
        card = {"object": "model", "created": canned.CREATED, "owned_by": "vllm"}
        base = card | {"id": BASE, "root": BASE, "parent": None, "max_model_len": canned.MAX_MODEL_LEN}
        loras = [card | {"id": name, "root": path, "parent": BASE} for name, path in self.adapters.items()]
        return canned.response("200 OK", json.dumps({"object": "list", "data": [base, *loras]}).encode())

    def _metrics(self, _: bytes) -> bytes:
        lines = (
            "# TYPE vllm:num_requests_running gauge",
            f'vllm:num_requests_running{{engine="0",model_name="{BASE}"}} {self.running}',
            "# TYPE mock_requests_total counter",
            f"mock_requests_total {self.requests}",
            "# TYPE mock_aborted_total counter",
            f"mock_aborted_total {self.aborted}",
            "",
        )
        return canned.response("200 OK", "\n".join(lines).encode(), "text/plain; version=0.0.4; charset=utf-8")


class Connection(asyncio.Protocol):
    """One keep-alive connection. Requests are answered in turn; a client that does not read is not written to."""

    def __init__(self, upstream: Upstream, loop: asyncio.AbstractEventLoop) -> None:
        self._upstream = upstream
        self._loop = loop
        self._transport: asyncio.Transport
        self._buffer = b""
        self._frames: list[bytes] | None = None
        """what is left of the answer in progress, last frame first"""
        self._closing = False
        self._paused = False
        self._timer: asyncio.Handle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:  # noqa: D102 asyncio.Protocol's
        self._transport = cast("asyncio.Transport", transport)  # uvloop has a class of its own

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: D102
        if self._timer is not None:
            self._timer.cancel()
        if self._frames is not None:
            self._frames = None
            self._upstream.running -= 1
            self._upstream.aborted += 1

    def pause_writing(self) -> None:  # noqa: D102
        self._paused = True

    def resume_writing(self) -> None:  # noqa: D102
        self._paused = False
        if self._frames is not None and self._timer is None:
            self._timer = self._loop.call_soon(self._write_frame)

    def data_received(self, data: bytes) -> None:  # noqa: D102
        self._buffer = self._buffer + data if self._buffer else data
        if self._frames is None:
            self._answer_requests()

    def _answer_requests(self) -> None:
        """Answer every whole request in the buffer, up to the first that takes time."""
        while self._frames is None and not self._transport.is_closing():
            end = self._buffer.find(b"\r\n\r\n")
            if end < 0:
                return
            head = self._buffer[: end + 2]
            parsed = _body(head, self._buffer, end + 4)
            if parsed is None:
                if len(self._buffer) > MAX_REQUEST:
                    self._transport.close()
                return
            body, rest = parsed
            self._buffer = self._buffer[rest:]
            self._closing = _CLOSE.search(head) is not None
            method, target = head.split(b" ", 2)[:2]
            self._answer(method, target.partition(b"?")[0], body)

    def _answer(self, method: bytes, path: bytes, body: bytes) -> None:
        if method != b"POST" or path not in {b"/v1/chat/completions", b"/v1/completions"}:
            self._write_last(self._upstream.control(method, path, body))
            return
        answered = self._upstream.answer(path, body)
        self._upstream.requests += 1
        if isinstance(answered, bytes):
            self._write_last(answered)
            return
        answer, ask = answered
        if not ask.stream and not self._upstream.latency_s:
            self._write_last(answer.whole)
            return
        self._upstream.running += 1
        self._frames = _frames(answer, ask)
        self._schedule(self._upstream.latency_s)

    def _schedule(self, delay_s: float) -> None:
        """Write the next frame after `delay_s`, at the earliest once the loop has been round."""
        if delay_s:
            self._timer = self._loop.call_later(delay_s, self._write_frame)
        else:
            self._timer = self._loop.call_soon(self._write_frame)

    def _write_frame(self) -> None:
        self._timer = None
        if self._frames is None or self._paused:
            return
        frame = self._frames.pop()
        if self._frames:
            self._transport.write(frame)
            self._schedule(self._upstream.chunk_delay_s)
            return
        self._frames = None
        self._upstream.running -= 1
        self._write_last(frame)
        self._answer_requests()

    def _write_last(self, data: bytes) -> None:
        self._transport.write(data)
        if self._closing:
            self._transport.close()


def _frames(answer: canned.Answer, ask: _Ask) -> list[bytes]:
    """The writes of an answer, last one first. The head travels with the first event, as after a prefill."""
    if not ask.stream:
        return [answer.whole]
    first, *others = answer.chunks
    frames = [canned.STREAM_HEAD + first, *others, answer.last]
    if ask.stream_options and ask.stream_options.include_usage:
        frames.insert(-1, answer.usage)
    frames.reverse()
    return frames


def _body(head: bytes, buffer: bytes, start: int) -> tuple[bytes, int] | None:
    """The body that begins at `start` and the offset after it, or None while it is not whole."""
    if length := _LENGTH.search(head):
        end = start + int(length[1])
        return (buffer[start:end], end) if len(buffer) >= end else None
    return _unchunk(buffer, start) if _CHUNKED.search(head) else (b"", start)


def _unchunk(buffer: bytes, start: int) -> tuple[bytes, int] | None:
    pieces: list[bytes] = []
    while (line := buffer.find(b"\r\n", start)) >= 0:
        size = int(buffer[start:line].partition(b";")[0], 16)
        begin, end = line + 2, line + 2 + size
        if len(buffer) < end + 2:
            return None
        if size == 0:
            return b"".join(pieces), end + 2
        pieces.append(buffer[begin:end])
        start = end + 2
    return None


@contextlib.asynccontextmanager
async def serving(upstream: Upstream, port: int = 0) -> AsyncIterator[str]:
    """Serve `upstream` on loopback within the context; yields its base URL."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(partial(Connection, upstream, loop), "127.0.0.1", port, backlog=1024)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


async def _main(arguments: argparse.Namespace) -> None:
    upstream = Upstream(arguments.latency_ms / 1000, arguments.chunk_delay_ms / 1000, arguments.tokens)
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with serving(upstream, arguments.port) as url:
        print(url, flush=True)
        await stopped.wait()


def main() -> None:
    """Run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="bench.mock_upstream", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=0, help="port on loopback; 0 picks a free one")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="wait before each answer")
    parser.add_argument("--chunk-delay-ms", type=float, default=0.0, help="wait between the chunks of a stream")
    parser.add_argument("--tokens", type=int, default=canned.STREAM_CHUNKS, help="of an answer")
    uvloop.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()

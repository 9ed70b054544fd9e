"""The transport against a server that is written byte by byte, so that it can misbehave in every way."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from serving.engine.transport import MAX_LINE, READ_BUFFER, Transport
from serving.errors import EngineTimeout, EngineUnavailable

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter, int], Awaitable[None]]
OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
CHUNKED = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


class Server:
    """Reads requests; `answer` gets each with the number of the connection."""

    def __init__(self, answer: Serve) -> None:
        self.answer = answer
        self.connections = 0
        self.requests: list[bytes] = []
        self.writers: list[asyncio.StreamWriter] = []
        self.gone = asyncio.Event()
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        self.writers.append(writer)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0)
                self.requests.append(head + await reader.readexactly(length))
                await self.answer(reader, writer, number)
        except (asyncio.IncompleteReadError, ConnectionError):
            self.gone.set()
        finally:
            writer.close()


@asynccontextmanager
async def serving(answer: Serve, socket: Path | None = None) -> AsyncIterator[Server]:
    server = Server(answer)
    if socket is None:
        listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
        server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    else:
        listener = await asyncio.start_unix_server(server.handle, socket)
        server.url = "http://engine"
    async with listener:
        yield server


@asynccontextmanager
async def connected(server: Server, socket: Path | None = None, **options: float | bool) -> AsyncIterator[Transport]:
    options = {"request_timeout_s": 5.0} | options
    transport = Transport("base", server.url, headers={"x-key": "k"}, **options)  # type: ignore[arg-type]
    transport.socket_path = str(socket) if socket else None
    try:
        yield transport
    finally:
        await transport.close()
        await asyncio.sleep(0.01)


def says(*parts: bytes, pause_s: float = 0.0) -> Serve:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(pause_s)

    return answer


async def post(transport: Transport, body: bytes = b"{}") -> tuple[int, bytes]:
    async with transport.open("/v1/x", body, {"x-more": "m"}) as response:
        return response.status, await response.read()


async def test_a_request_is_sent_whole_and_its_answer_read_over_tcp_and_over_a_unix_socket(tmp_path: Path) -> None:
    for socket in (None, tmp_path / "s"):
        async with serving(says(OK), socket) as server, connected(server, socket) as transport:
            assert await post(transport, b'{"a": "\xc3\xa9"}') == (200, b"{}")
            head, _, body = server.requests[0].partition(b"\r\n\r\n")
            assert head.startswith(b"POST /v1/x HTTP/1.1\r\n")
            assert {b"x-key: k", b"x-more: m", b"content-type: application/json"} <= set(head.split(b"\r\n"))
            assert body == b'{"a": "\xc3\xa9"}'


async def test_connections_are_kept_and_used_again() -> None:
    async with serving(says(OK)) as server, connected(server) as transport:
        for _ in range(5):
            await post(transport)
        assert server.connections == 1
        await asyncio.gather(*(post(transport) for _ in range(4)))
        assert server.connections <= 4
        assert len(server.requests) == 9


async def test_connections_idle_for_too_long_are_not_used_again() -> None:
    async with serving(says(OK)) as server, connected(server, keepalive_s=0.05) as transport:
        await post(transport)
        await asyncio.sleep(0.1)
        await post(transport)
        assert server.connections == 2


async def test_header_names_are_found_whatever_their_case() -> None:
    head = b"HTTP/1.1 429 Slow Down\r\nRetry-After: 7\r\ncontent-length: 0\r\n\r\n"
    async with (
        serving(says(head)) as server,
        connected(server) as transport,
        transport.open("/v1/x", b"{}") as response,
    ):
        assert (response.status, response.headers["retry-after"]) == (429, "7")
        assert await response.read() == b""


async def test_chunks_come_as_they_are_sent_whatever_the_cuts() -> None:
    stream = (
        b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in (b"data: 1\n\n", b"data: 2\n\n")) + b"0\r\n\r\n"
    )
    whole = CHUNKED + stream
    async with serving(says(*(whole[i : i + 1] for i in range(len(whole))))) as server, connected(server) as transport:
        for _ in range(2):
            async with transport.open("/v1/x", b"{}") as response:
                assert b"".join([piece async for piece in response.chunks()]) == b"data: 1\n\ndata: 2\n\n"
        assert server.connections == 1


async def test_interim_heads_are_passed_over() -> None:
    async with (
        serving(says(b"HTTP/1.1 100 Continue\r\nx-no: 1\r\n\r\n" + OK)) as server,
        connected(server) as transport,
        transport.open("/v1/x", b"{}") as response,
    ):
        assert "x-no" not in response.headers
        assert await response.read() == b"{}"


async def test_a_body_without_a_length_ends_with_the_connection() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nsome")
        await writer.drain()
        writer.write(b"thing")
        writer.close()

    async with serving(answer) as server, connected(server) as transport:
        assert await post(transport) == (200, b"something")


async def test_leaving_early_closes_the_connection() -> None:
    async with serving(says(CHUNKED, b"4\r\nabcd\r\n", b"", pause_s=0.05)) as server, connected(server) as transport:
        async with transport.open("/v1/x", b"{}") as response:
            async for _ in response.chunks():
                break
        async with asyncio.timeout(2):
            await server.gone.wait()


async def test_cancelling_before_an_answer_closes_the_connection() -> None:
    async with serving(says(b"", pause_s=0.3)) as server, connected(server) as transport:
        task = asyncio.create_task(post(transport))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        async with asyncio.timeout(2):
            await server.gone.wait()


@pytest.mark.parametrize(
    "parts",
    [
        (b"",),
        (b"HTTP/1.1 200 OK\r\n",),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",),
        (CHUNKED, b"4\r\nabcd\r\n"),
        (b"not http at all\r\n\r\n",),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * (MAX_LINE + 1) + b"\r\n\r\n",),
        (CHUNKED, b"zz\r\n"),
    ],
)
@pytest.mark.parametrize("read", ["read", "chunks"])
async def test_a_death_or_nonsense_in_the_middle_is_an_error_of_ours(parts: tuple[bytes, ...], read: str) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0.02)
        writer.close()

    async with serving(answer) as server, connected(server, request_timeout_s=0.3) as transport:
        with pytest.raises((EngineUnavailable, EngineTimeout)):
            async with transport.open("/v1/x", b"{}") as response:
                if read == "read":
                    await response.read()
                else:
                    async for _ in response.chunks():
                        pass


async def test_nobody_listening_is_an_unavailable_engine(tmp_path: Path) -> None:
    for path in (None, str(tmp_path / "none")):
        transport = Transport("base", "http://127.0.0.1:9", request_timeout_s=1)
        transport.socket_path = path
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            await post(transport)
        await transport.close()


async def test_silence_is_a_timeout_before_the_head_and_within_the_body() -> None:
    for parts in ((b"",), (CHUNKED, b"4\r\nabcd\r\n", b"")):
        async with serving(says(*parts, pause_s=1.0)) as server, connected(server, request_timeout_s=0.2) as transport:
            with pytest.raises(EngineTimeout):
                await post(transport)


async def test_a_slow_stream_that_never_falls_silent_does_not_time_out() -> None:
    parts = (CHUNKED, *[b"1\r\nx\r\n"] * 8, b"0\r\n\r\n")
    async with serving(says(*parts, pause_s=0.1)) as server, connected(server, request_timeout_s=0.4) as transport:
        assert await post(transport) == (200, b"x" * 8)


async def test_a_reader_slower_than_the_engine_holds_it_back_and_does_not_time_out() -> None:
    sent = 0

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % (1 << 26))
        for _chunk in range(1 << 10):
            writer.write(b"x" * (1 << 16))
            await writer.drain()
            sent += 1 << 16

    async with serving(answer) as server, connected(server, request_timeout_s=0.2) as transport:
        async with transport.open("/v1/x", b"{}") as response:
            await asyncio.sleep(0.6)
            assert sent < 40 * READ_BUFFER
            assert len(await response.read()) == 1 << 26
        assert await post(transport) == (200, b"x" * (1 << 26))


async def test_a_stream_has_one_timer_that_ends_with_it_or_when_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    call_later, timers = loop.call_later, list[asyncio.TimerHandle]()

    def noting(delay: float, callback: Callable[..., object], *args: Any, **more: Any) -> asyncio.TimerHandle:
        timer = call_later(delay, callback, *args, **more)
        if getattr(callback, "__name__", "") == "_look":
            timers.append(timer)
        return timer

    monkeypatch.setattr(loop, "call_later", noting)
    parts = (CHUNKED, *[b"1\r\nx\r\n"] * 20, b"0\r\n\r\n")
    async with serving(says(*parts, pause_s=0.01)) as server, connected(server, request_timeout_s=5) as transport:
        assert await post(transport) == (200, b"x" * 20)
        assert [timer.cancelled() for timer in timers] == [True]
        async with transport.open("/v1/x", b"{}") as response:
            async for _chunk in response.chunks():
                break
        assert [timer.cancelled() for timer in timers] == [True, True]


async def test_silence_counts_from_the_wait_however_long_the_reader_was_busy_before() -> None:
    parts = (CHUNKED + b"1\r\nx\r\n", b"1\r\ny\r\n", b"")
    async with (
        serving(says(*parts, pause_s=0.6)) as server,
        connected(server, request_timeout_s=0.4) as transport,
        transport.open("/v1/x", b"{}") as response,
    ):
        chunks = response.chunks()
        assert await anext(chunks) == b"x"
        await asyncio.sleep(0.45)
        assert await anext(chunks) == b"y"
        began = time.monotonic()
        with pytest.raises(EngineTimeout):
            await anext(chunks)
        assert 0.3 < time.monotonic() - began < 0.6


async def test_a_piece_that_comes_while_the_loop_stands_still_is_no_silence() -> None:
    parts = (CHUNKED, b"1\r\na\r\n", b"1\r\nb\r\n0\r\n\r\n")
    async with (
        serving(says(*parts, pause_s=0.2)) as server,
        connected(server, request_timeout_s=0.5) as transport,
        transport.open("/v1/x", b"{}") as response,
    ):
        chunks = response.chunks()
        assert await anext(chunks) == b"a"
        waiting = asyncio.create_task(anext(chunks))  # type: ignore[arg-type]
        await asyncio.sleep(0.15)
        writer = server.writers[-1]
        writer.write(b"1\r\nc\r\n")
        time.sleep(0.6)  # noqa: ASYNC251 - the loop is to stand still
        assert await waiting == b"c"
        assert [chunk async for chunk in chunks] == [b"b"]


async def test_a_connection_that_goes_while_the_reader_is_busy_is_an_error_of_ours() -> None:
    async with (
        serving(says(CHUNKED, b"1\r\na\r\n", pause_s=0.05)) as server,
        connected(server) as transport,
        transport.open("/v1/x", b"{}") as response,
    ):
        chunks = response.chunks()
        assert await anext(chunks) == b"a"
        await transport.close()
        with pytest.raises(EngineUnavailable, match="went away"):
            await anext(chunks)


@pytest.mark.parametrize("retry", [True, False])
async def test_a_kept_connection_that_closes_at_once_is_tried_again_where_that_is_asked_for(retry: bool) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        if number == 1 and len(server.requests) == 2:
            writer.close()
        else:
            writer.write(OK)

    async with serving(answer) as server, connected(server, retry_stale=retry) as transport:
        await post(transport)
        if retry:
            assert await post(transport) == (200, b"{}")
            assert len(server.requests) == 3
        else:
            with pytest.raises(EngineUnavailable):
                await post(transport)


async def test_a_server_that_keeps_closing_is_not_tried_a_third_time() -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        writer.close()

    async with serving(answer) as server, connected(server, retry_stale=True) as transport:
        with pytest.raises(EngineUnavailable):
            await post(transport)
        assert len(server.requests) == 2


async def test_bytes_that_nobody_asked_for_end_the_connection_and_reach_no_one() -> None:
    surplus = b"HTTP/1.1 200 OK\r\nx-no: 1\r\ncontent-length: 5\r\n\r\not"
    async with serving(says(OK + surplus)) as server, connected(server) as transport:
        for _ in range(3):
            async with transport.open("/v1/x", b"{}") as response:
                assert await response.read() == b"{}"
                assert "x-no" not in response.headers
        assert server.connections == 3


@pytest.mark.parametrize(
    ("path", "headers"), [("/v1/x HTTP/1.1\r\nx: y", {}), ("/v1", {"a": "b\r\nc: d"}), ("/v1", {"a\n": "b"})]
)
async def test_nothing_breaks_out_of_its_line(path: str, headers: dict[str, str]) -> None:
    async with serving(says(OK)) as server, connected(server) as transport:
        with contextlib.suppress(ValueError):
            async with transport.open(path, b"{}", headers):
                pass
        assert not any(b"\r\nx: y" in request or b"\r\nc: d" in request for request in server.requests)


async def test_fetch_has_a_limit_of_its_own() -> None:
    async with serving(says(b"", pause_s=1.0)) as server, connected(server) as transport:
        with pytest.raises(EngineTimeout, match=r"0\.1 s"):
            await transport.fetch("GET", "/health", timeout_s=0.1)


LENGTH = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{"
NO_LENGTH = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nhalf"


@pytest.mark.parametrize("retry", [True, False])
@pytest.mark.parametrize("way", ["open", "fetch"])
@pytest.mark.parametrize(
    "sent",
    [b"", CHUNKED, CHUNKED + b"1\r\na\r\n", LENGTH, NO_LENGTH],
    ids=["no head", "a head", "a piece", "half of a length", "half without a length"],
)
async def test_moving_ends_what_is_in_flight(sent: bytes, way: str, retry: bool, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    async with (
        serving(says(sent, pause_s=2), old) as before,
        serving(says(OK), new) as after,
        connected(before, old, retry_stale=retry) as transport,
    ):
        task = asyncio.create_task(post(transport) if way == "open" else transport.fetch("POST", "/v1/x"))
        await asyncio.sleep(0.05)
        await transport.move(str(new))
        began = time.monotonic()
        with pytest.raises(EngineUnavailable, match="went away"):
            await task
        assert time.monotonic() - began < 0.5
        assert len(before.requests) == 1
        assert not after.requests
        assert await post(transport) == (200, b"{}")


async def test_closing_leaves_an_answer_that_has_come_whole() -> None:
    async with (
        serving(says(OK)) as server,
        connected(server) as transport,
        transport.open("/v1/x", b"{}") as response,
    ):
        await asyncio.sleep(0.05)
        await transport.close()
        assert await response.read() == b"{}"

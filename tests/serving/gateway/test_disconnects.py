"""A client that goes away, at every moment of its request: the work ends and nothing stays taken."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bench.canned import STREAM_HEAD
from bench.mock_upstream import Upstream
from tests.serving.gateway.conftest import Endpoint, StartEndpoint
from tests.serving.gateway.scripted import MODEL, Request, Scripted, chunk, delta, never
from tests.serving.gateway.test_cold import Gate
from tests.serving.waiting import until


@asynccontextmanager
async def client(
    endpoint: Endpoint, model: str = "legal", *, sends: int | None = None
) -> AsyncIterator[asyncio.StreamReader]:
    """A chat request on a connection of its own, of which `sends` bytes are sent; leaving hangs up."""
    body = json.dumps({"model": model, "stream": True, "messages": [{"role": "user", "content": "x"}]}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    host, port = endpoint.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write((head + body)[:sends])
    await writer.drain()
    try:
        yield reader
    finally:
        writer.close()


def gone(endpoint: Endpoint) -> float:
    """Requests counted as left by their client."""
    value = endpoint.gateway.metrics.registry.get_sample_value(
        "loradock_requests_total", {"path": "/v1/chat/completions", "status": "499"}
    )
    return value or 0.0


def begun(endpoint: Endpoint) -> float:
    """Requests that are being dealt with."""
    return endpoint.gateway.metrics.registry.get_sample_value("loradock_requests_in_flight") or 0.0


async def released(endpoint: Endpoint) -> None:
    await until(lambda: endpoint.idle() and begun(endpoint) == 0 and gone(endpoint) == 1)


async def test_before_its_body_is_whole(faulty: Endpoint, scripted: Scripted) -> None:
    for missing in (1, 60):
        async with client(faulty, sends=-missing):
            await until(lambda: begun(faulty) == 1)
        await until(lambda: begun(faulty) == 0)
    assert gone(faulty) == 2
    assert not scripted.asked


async def test_while_it_waits_for_its_turn(start: StartEndpoint, scripted: Scripted, scripted_url: str) -> None:
    endpoint = await start(scripted_url, MODEL, max_inflight=1, max_queued=1)
    scripted.script = never
    async with client(endpoint):
        await scripted.began.wait()
        async with client(endpoint):
            await until(lambda: endpoint.gateway.admission.queued == 1)
        await until(lambda: endpoint.gateway.admission.queued == 0)
        assert gone(endpoint) == 1
    await until(endpoint.idle)
    assert len(scripted.asked) == 1, "the one that left before its turn was never sent on"


async def test_while_it_waits_for_a_cold_adapter(faulty: Endpoint, scripted: Scripted) -> None:
    gate = Gate(scripted)
    async with client(faulty):
        await gate.reached.wait()
    await released(faulty)
    assert not scripted.asked
    gate.open.set()
    assert (await faulty.ask("legal")).headers["x-loradock-adapter"] != "none"


async def test_before_the_first_byte(faulty: Endpoint, scripted: Scripted) -> None:
    scripted.script = never
    async with client(faulty):
        await scripted.began.wait()
        assert faulty.in_flight("legal") == 1
    async with asyncio.timeout(5):
        await scripted.left.wait()
    await released(faulty)


async def test_in_the_middle_of_a_stream(faulty: Endpoint, scripted: Scripted) -> None:
    async def speak_on(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(delta("one")))
        await never(request, writer)

    scripted.script = speak_on
    async with client(faulty) as reader:
        await reader.readuntil(b"one")
        assert faulty.in_flight("legal") == 1
    async with asyncio.timeout(5):
        await scripted.left.wait()
    await released(faulty)


async def test_a_client_that_stops_reading_holds_back_the_upstream_and_leaves_cleanly(
    faulty: Endpoint, scripted: Scripted
) -> None:
    """What the client does not take is not piled up here."""
    written = 0

    async def flood(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        writer.write(STREAM_HEAD)
        piece = chunk(delta("x" * 60_000))
        while True:
            writer.write(piece)
            await writer.drain()
            written += len(piece)

    scripted.script = flood
    async with client(faulty) as reader:
        await reader.readuntil(b"xxx")
        seen = -1
        while seen != written:  # until both sockets are full
            seen = written
            await asyncio.sleep(0.2)
        assert written < 64 << 20
    async with asyncio.timeout(5):
        await scripted.left.wait()
    await released(faulty)


@pytest.mark.parametrize("latency_s", [0.0, 5.0])
async def test_the_official_client_leaving_a_stream_ends_the_engines_work(
    endpoint: Endpoint, upstream: Upstream, latency_s: float
) -> None:
    upstream.chunk_delay_s, upstream.latency_s = 0.02, latency_s
    asking = endpoint.openai.chat.completions.create(
        model="legal", messages=[{"role": "user", "content": "x"}], stream=True
    )
    if latency_s:
        task = asyncio.ensure_future(asking)
        await until(lambda: upstream.running == 1)
        task.cancel()
        await asyncio.wait([task])
    else:
        async with await asking as streaming:
            await anext(aiter(streaming))
            assert upstream.running == 1
    await until(lambda: upstream.aborted == 1 and upstream.running == 0)
    await released(endpoint)


async def test_a_hundred_that_come_and_go_leave_nothing_behind(endpoint: Endpoint, upstream: Upstream) -> None:
    upstream.chunk_delay_s = 0.001

    async def visit(number: int) -> None:
        async with client(endpoint, ("legal", "support", "extra")[number % 3]) as reader:
            await reader.readexactly(number * 3 + 1)

    await asyncio.gather(*(visit(number) for number in range(100)))
    await until(lambda: endpoint.idle() and begun(endpoint) == 0 and upstream.running == 0)
    assert (await endpoint.ask("legal")).status_code == 200

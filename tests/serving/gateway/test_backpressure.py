"""More requests than the gateway takes: 429 at once, and everything as before afterwards."""

from __future__ import annotations

import asyncio

import httpx

from tests.serving.gateway.conftest import StartEndpoint
from tests.serving.gateway.scripted import MODEL, Request, Scripted, say_ok
from tests.serving.gateway.test_errors import check
from tests.serving.waiting import until


class Held:
    """An upstream that answers when it is told to."""

    def __init__(self, scripted: Scripted) -> None:
        self.go = asyncio.Event()
        scripted.script = self.run

    async def run(self, request: Request, writer: asyncio.StreamWriter) -> None:
        await self.go.wait()
        await say_ok(request, writer)


async def test_what_does_not_fit_gets_429_and_the_rest_is_served(
    start: StartEndpoint, scripted: Scripted, scripted_url: str
) -> None:
    endpoint, held = await start(scripted_url, MODEL, max_inflight=3, max_queued=4), Held(scripted)
    admission = endpoint.gateway.admission
    asked = [asyncio.ensure_future(endpoint.ask("legal")) for _ in range(7)]
    await until(lambda: (admission.running, admission.queued) == (3, 4))
    refused: list[httpx.Response] = await asyncio.gather(*(endpoint.ask("legal") for _ in range(20)))
    for answer in refused:
        check(answer, 429, type="rate_limit_error", code="overloaded")
        assert int(answer.headers["retry-after"]) >= 1
    assert (await endpoint.http.get("/health")).status_code == 200, "probes are not counted"
    assert (await endpoint.http.get("/metrics")).status_code == 200
    held.go.set()
    assert {answer.status_code for answer in await asyncio.gather(*asked)} == {200}
    assert endpoint.idle()
    assert (await endpoint.ask("legal")).status_code == 200


async def test_a_turn_that_does_not_come_in_time_is_429(
    start: StartEndpoint, scripted: Scripted, scripted_url: str
) -> None:
    endpoint = await start(scripted_url, MODEL, max_inflight=1, max_queued=1, queue_timeout_s=0.05)
    held = Held(scripted)
    first = asyncio.ensure_future(endpoint.ask("legal"))
    await scripted.began.wait()
    check(await endpoint.ask("legal"), 429, code="overloaded")
    held.go.set()
    assert (await first).status_code == 200
    assert endpoint.idle()


async def test_a_refused_request_leaves_its_connection_usable(
    start: StartEndpoint, scripted: Scripted, scripted_url: str
) -> None:
    endpoint = await start(scripted_url, MODEL, max_inflight=1, max_queued=0)
    held = Held(scripted)
    first = asyncio.ensure_future(endpoint.ask("legal"))
    await scripted.began.wait()
    limits = httpx.Limits(max_connections=1)
    async with httpx.AsyncClient(base_url=endpoint.url, limits=limits, trust_env=False) as other:
        body = {"model": "legal", "messages": [{"role": "user", "content": "x"}]}
        assert (await other.post("/v1/chat/completions", json=body)).status_code == 429
        held.go.set()
        await first
        assert (await other.post("/v1/chat/completions", json=body)).status_code == 200

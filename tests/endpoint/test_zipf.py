"""The promises under load, as `bench/zipf.py` measures them, and the engine's death."""

import asyncio
import os
import signal
import tempfile
import time
from pathlib import Path

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from bench import zipf
from tests.endpoint.conftest import Server

USER = [{"role": "user", "content": "The parcel is broken."}]
TIMEOUT_S = 280


@pytest.mark.timeout(TIMEOUT_S)
async def test_a_thousand_requests_over_twenty_adapters_in_four_slots(server: Server) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        async with httpx.AsyncClient(
            base_url=server.url, timeout=120, limits=httpx.Limits(max_connections=None)
        ) as http:
            endpoint = zipf.Endpoint(http)
            models, churn = await zipf.prepare(endpoint, Path(temporary), adapters=20)
            assert len(set(models.values())) >= 18, "the fingerprints must tell adapters apart"
            crowd = await zipf.herd(endpoint, next(iter(models)))
            assert crowd == {"loads": 1, "good": 100}
            tally = await zipf.zipf(endpoint, models, churn, requests=1000, seed=0)
    assert tally.wrong == []
    assert tally.server_errors == 0
    assert set(tally.statuses) <= {200, 404}
    assert tally.answered >= 950
    assert tally.changes >= 10
    assert server.get("/ready").json()["engines"][0]["restarts"] == 0


@pytest.mark.timeout(TIMEOUT_S)
async def test_the_engine_is_killed_under_load_and_all_comes_back(server: Server, aclient: AsyncOpenAI) -> None:
    adapters_before = server.get("/v1/adapters").json()["data"]
    streams = [asyncio.create_task(read_stream(aclient, "support-agent")) for _ in range(8)]
    whole = [asyncio.create_task(ask(server, "legal-agent", tokens=1000)) for _ in range(8)]
    await asyncio.sleep(1)
    os.kill(server.engine_pid(), signal.SIGKILL)
    outcomes = await asyncio.gather(*streams, return_exceptions=True)
    # Every stream that was cut says so: the client raises, nothing ends as if it were complete.
    assert all(isinstance(outcome, openai.APIError) for outcome in outcomes), outcomes
    for answer in await asyncio.gather(*whole):
        assert answer.status_code in (200, 503)
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] == "engine_unavailable"
            assert int(answer.headers["retry-after"]) >= 1

    later = await ask(server, "security-agent")  # waits, or is told when to come back
    assert later.status_code in (200, 503)
    deadline = time.monotonic() + 120
    while (answer := await ask(server, "support-agent")).status_code != 200:
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert time.monotonic() < deadline
        await asyncio.sleep(1)
    assert answer.headers["x-loradock-adapter"].startswith("support-agent@")
    engine = server.get("/ready").json()["engines"][0]
    assert (engine["state"], engine["restarts"]) == ("ready", 1)

    def identity(adapters: list[dict[str, str]]) -> list[tuple[str, str, str]]:
        return [(each["name"], each["digest"], each["state"]) for each in adapters]

    assert identity(server.get("/v1/adapters").json()["data"]) == identity(adapters_before)
    for agent in ("legal-agent", "security-agent", "support-agent"):
        assert (await ask(server, agent)).headers["x-loradock-adapter"].startswith(f"{agent}@")


async def read_stream(client: AsyncOpenAI, model: str) -> int:
    stream = await client.chat.completions.create(
        model=model, messages=USER, stream=True, max_tokens=1900, extra_body={"ignore_eos": True}
    )
    return len([chunk async for chunk in stream])


async def ask(server: Server, model: str, tokens: int = 2) -> httpx.Response:
    async with httpx.AsyncClient(timeout=60) as http:
        body = {"model": model, "messages": USER, "max_tokens": tokens, "ignore_eos": True}
        return await http.post(f"{server.url}/v1/chat/completions", json=body)

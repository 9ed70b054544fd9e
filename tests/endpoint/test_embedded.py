"""The demo adapters through the running endpoint; `bench/embedded.py` measures all held-out cases."""

import httpx

from bench import embedded
from tests.endpoint.conftest import Server

ROWS = 200


async def test_each_demo_adapter_is_right_and_far_above_the_base(server: Server) -> None:
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client:
        records = await embedded.score_agents(client, ROWS)
    for record in records:
        assert record["accuracy"] >= embedded.LEAST_RIGHT, record
        assert record["accuracy"] - record["base_accuracy"] >= embedded.LEAST_GAIN, record

"""Two gateway processes over one fleet, as a user starts them."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from bench import mock_upstream
from bench.processes import Child, started_with
from tests.adapters_registry.build import write_adapter
from tests.serving.served import Served, served
from tests.serving.waiting import until

CHUNK_S = 0.05


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a mock whose streams take some seconds."""
    command = [sys.executable, "-m", "bench.mock_upstream", "--chunk-delay-ms", str(1e3 * CHUNK_S)]
    with Child(command, tmp_path_factory.mktemp("mock") / "log", announces=True) as mock:
        yield mock.first_line()


@pytest.fixture(scope="module")
def running(
    tmp_path_factory: pytest.TempPathFactory, prepared_homes: dict[str, Path], upstream: str
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("workers")
    home = shutil.copytree(prepared_homes[mock_upstream.BASE], folder / "home")
    with served(home, upstream, folder / "tmp", workers="2", shutdown_grace_s="1") as server:
        yield server


@pytest.fixture
async def server(running: Served) -> Served:
    """The module's server, with both its workers."""
    await running.ready()
    await until(lambda: len(running.workers()) == 2)
    return running


async def call(server: Served, method: str, path: str, body: object = None) -> httpx.Response:
    """One request on a connection of its own, so that either worker may get it."""
    async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=20) as http:
        return await http.request(method, path, json=body)


async def ask(server: Served, model: str) -> httpx.Response:
    answered = await call(
        server, "POST", "/v1/chat/completions", {"model": model, "messages": [{"role": "user", "content": "x"}]}
    )
    assert answered.status_code == 200, answered.text
    return answered


async def mocked(upstream: str, name: str) -> float:
    """A number that the mock tells of itself."""
    async with httpx.AsyncClient(trust_env=False) as http:
        lines = (await http.get(upstream + "/metrics")).text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(name))


async def metric(server: Served, name: str, **labels: str) -> float:
    text = (await call(server, "GET", "/metrics")).text
    families = list(text_string_to_metric_families(text))
    assert len(families) == len({family.name for family in families})
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())


async def residency(server: Served, name: str) -> dict[str, Any]:
    found: dict[str, Any] = (await call(server, "GET", f"/v1/adapters/{name}")).json()["residency"]
    return found


async def test_both_workers_share_one_residency_and_their_counts_add_up(server: Served) -> None:
    answers = await asyncio.gather(*(ask(server, "legal") for _ in range(50)))
    assert {answer.headers["x-loradock-adapter"].partition("@")[0] for answer in answers} == {"legal"}

    async def told() -> bool:  # the workers learn of changes a tenth of a second later
        found = await residency(server, "legal")
        return bool(found["state"] == "ready" and not found["in_flight"])

    await until(told)
    assert (await residency(server, "legal"))["loads"] == 1
    assert await metric(server, "loradock_requests_total", path="/v1/chat/completions", status="200") == 50
    assert await metric(server, "loradock_adapter_load_seconds_count", outcome="ok") == 1
    assert await metric(server, "loradock_adapter_slots", use="used") == 1
    assert await metric(server, "loradock_engine_up") == 1
    assert await metric(server, "mock_requests_total", engine_name="base") == 50
    for name in ["support", "extra", "legal"] * 5:  # more adapters than slots
        assert (await ask(server, name)).headers["x-loradock-adapter"].startswith(name)


async def test_what_one_worker_registers_the_other_serves_at_once(server: Served, tmp_path: Path) -> None:
    for number in range(4):
        name = f"new-{number}"
        source = write_adapter(tmp_path / name, 20 + number, base_model_name_or_path=mock_upstream.BASE)
        added = await call(server, "POST", "/v1/adapters", {"name": name, "source": str(source)})
        assert added.status_code == 201, added.text

        async def everywhere(path: str, wanted: int) -> None:
            async def agreed() -> bool:
                return {(await call(server, "GET", path)).status_code for _ in range(8)} == {wanted}

            await until(agreed, limit_s=1)

        await everywhere(f"/v1/models/{name}@{added.json()['version']}", 200)
        assert all([(await ask(server, name)).headers["x-loradock-adapter"].startswith(name) for _ in range(4)])
        assert (await call(server, "POST", f"/v1/adapters/{name}/unload")).status_code == 200
        assert (await call(server, "POST", f"/v1/adapters/{name}/load")).status_code == 200
        assert (await call(server, "DELETE", f"/v1/adapters/{name}")).status_code == 200
        await everywhere(f"/v1/models/{name}@{added.json()['version']}", 404)


async def test_a_killed_worker_lets_go_of_what_it_held_and_is_replaced(server: Served, upstream: str) -> None:
    before = set(server.workers())
    body = {"model": "legal", "stream": True, "messages": [{"role": "user", "content": "x"}]}

    async def listen() -> str:
        async with httpx.AsyncClient(base_url=server.url, trust_env=False, timeout=30) as http:
            try:
                async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
                    async for _ in answer.aiter_lines():
                        pass
            except httpx.TransportError:
                return "cut"
        return "whole"

    streams = [asyncio.ensure_future(listen()) for _ in range(8)]

    async def running(wanted: int) -> bool:
        return await mocked(upstream, "vllm:num_requests_running") == wanted

    await until(partial(running, 8))
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert set(await asyncio.gather(*streams)) == {"cut"}
    await until(partial(running, 0))
    assert await mocked(upstream, "mock_aborted_total") == 8
    await until(lambda: len(server.workers()) == 2 and not before & set(server.workers()))
    await server.ready()
    assert (await residency(server, "legal"))["in_flight"] == 0
    for name in ("legal", "support", "extra"):  # its slot can be taken again
        assert (await ask(server, name)).headers["x-loradock-adapter"].startswith(name)
    assert await metric(server, "loradock_requests_in_flight") == 0


async def test_workers_end_with_their_parent(server: Served) -> None:
    """The last of this module: it ends the module's server."""
    assert len(started_with(str(server.folder))) >= 3
    os.kill(server.process.pid, signal.SIGKILL)
    await until(lambda: started_with(str(server.folder)) == [])
    with pytest.raises(httpx.ConnectError):
        await call(server, "GET", "/health")

"""One `loradock serve` on the real vLLM for all tests of this folder, as a user starts it."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from openai import AsyncOpenAI, OpenAI

from bench.environment import ROOT
from bench.processes import Child, free_port

START_S = 180.0
SLOTS = 4


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/endpoint" in str(item.path):
            item.add_marker(pytest.mark.engine)


@dataclass
class Server:
    url: str
    home: Path
    process: Child

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60)

    def delete(self, path: str) -> httpx.Response:
        return httpx.delete(self.url + path, timeout=60)

    def post(self, path: str, body: object = None) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=120)

    def wait_ready(self, limit_s: float = START_S) -> None:
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            if not self.process.running():
                break
            try:
                if self.get("/ready").status_code == httpx.codes.OK:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.3)
        raise self.process.failed("is not ready")

    def engine_pid(self) -> int:
        return int(self.get("/ready").json()["engines"][0]["pid"])


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder, port = tmp_path_factory.mktemp("endpoint"), free_port()
    settings = {
        "LORADOCK_HOME": str(folder / "home"),
        "LORADOCK_PORT": str(port),
        "LORADOCK_ENGINES": json.dumps([{"name": "base", "slots": SLOTS}]),
        "LORADOCK_COLD_POLICY": "wait",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LORADOCK_")}
    with Child([sys.executable, "-m", "serving.cli", "serve"], folder / "log", env=kept | settings, cwd=ROOT) as child:
        server = Server(f"http://127.0.0.1:{port}", folder / "home", child)
        server.wait_ready()
        yield server


@pytest.fixture
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
async def aclient(server: Server) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0) as client:
        yield client


async def until(condition: object, limit_s: float = 10.0) -> bool:
    """Whether `condition()` comes true in time."""
    assert callable(condition)
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        if await asyncio.to_thread(condition):
            return True
        await asyncio.sleep(0.1)
    return False

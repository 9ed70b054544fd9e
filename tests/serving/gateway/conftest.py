"""The composed gateway in this process, on a port of its own, in front of upstreams that a test controls."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from openai import AsyncOpenAI

from bench import mock_upstream
from configs.settings import EngineSettings, Settings
from serving.auth import KeyRing
from serving.composition import compose_alone
from serving.engine.base import EngineState
from serving.fleet import LocalFleet
from serving.gateway import Gateway, create_app
from serving.gateway.app import Endpoint as EndpointApp
from serving.server import bind, url_of, uvicorn_config
from tests.serving.gateway.scripted import MODEL, Scripted, serving
from tests.serving.waiting import until


@dataclass
class Endpoint:
    """A running gateway, and what a test may look at."""

    url: str
    gateway: Gateway
    fleet: LocalFleet
    app: EndpointApp
    http: httpx.AsyncClient
    server: uvicorn.Server
    openai: AsyncOpenAI

    async def ask(self, model: str = "auto", **fields: Any) -> httpx.Response:
        """POST a chat request."""
        headers = fields.pop("headers", {})
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]} | fields
        return await self.http.post("/v1/chat/completions", json=body, headers=headers)

    def in_flight(self, name: str) -> int:
        """Requests that hold an adapter, by its name or any version's."""
        version = self.gateway.registered.newest[name]
        resident = self.fleet.resident(version)
        return resident.in_flight if resident else 0

    def idle(self) -> bool:
        """Nothing runs, waits or is held."""
        admission = self.gateway.admission
        residencies = [self.fleet.residency(engine.base_name) for engine in self.fleet.engines]
        entries = [entry for residency in residencies for entry in residency.entries()]
        return not admission.running and not admission.queued and not any(e.in_flight or e.waiters for e in entries)


StartEndpoint = Callable[..., Awaitable[Endpoint]]


@pytest.fixture
async def start(home: Callable[[str], Path]) -> AsyncIterator[StartEndpoint]:
    """Start an endpoint in front of `url`, which serves `base`; keywords are settings."""
    async with AsyncExitStack() as stack:

        async def start(url: str, base: str = mock_upstream.BASE, **more: Any) -> Endpoint:
            slots, more_engines = more.pop("slots", 2), more.pop("more_engines", ())
            engine = EngineSettings(name="base", kind="vllm-remote", url=url, model=base, slots=slots)
            settings = Settings(
                **{"port": 0, "home": home(base), "engines": (engine, *more_engines), "prefetch": False, **more}
            )
            return await stack.enter_async_context(running(settings))

        yield start


@contextlib.asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[Endpoint]:
    """The endpoint of `settings` with its engines ready; ended as by a signal."""
    # In a thread, because a remote engine is asked for its models while it is composed, and may live in this loop.
    gateway, fleet = await asyncio.to_thread(compose_alone, settings, KeyRing(settings.keys_file))
    app = create_app(gateway)
    listener = bind(settings)
    config = uvicorn_config(app, settings)
    server = uvicorn.Server(config)
    serving_task = asyncio.ensure_future(server._serve([listener]))  # serve() would take this process's signals
    url = url_of(listener)
    async with (
        httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as http,
        AsyncOpenAI(base_url=f"{url}/v1", max_retries=0, api_key="none") as openai,
    ):
        await until(lambda: server.started or serving_task.done())
        await until(lambda: all(engine.status.state is EngineState.READY for engine in fleet.engines))
        try:
            yield Endpoint(url, gateway, fleet, app, http, server, openai)
        finally:
            server.should_exit = True
            await serving_task
            listener.close()


@pytest.fixture
def upstream() -> mock_upstream.Upstream:
    """The mock of the benchmarks; a test may give it delays."""
    return mock_upstream.Upstream()


@pytest.fixture
async def mock_url(upstream: mock_upstream.Upstream) -> AsyncIterator[str]:
    async with mock_upstream.serving(upstream) as url:
        yield url


@pytest.fixture
async def scripted() -> Scripted:
    """An upstream with faults."""
    return Scripted()


@pytest.fixture
async def scripted_url(scripted: Scripted) -> AsyncIterator[str]:
    async with serving(scripted) as url:
        yield url


@pytest.fixture
async def endpoint(start: StartEndpoint, mock_url: str) -> Endpoint:
    """In front of the mock, two slots."""
    return await start(mock_url)


@pytest.fixture
async def faulty(start: StartEndpoint, scripted_url: str) -> Endpoint:
    """In front of the scripted upstream."""
    return await start(scripted_url, MODEL)


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No settings from the environment, no handler left on the root logger."""
    monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
    yield

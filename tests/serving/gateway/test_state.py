"""The parts that the routes share: the registry's view, start and end."""

from __future__ import annotations

import asyncio
import threading

import pytest

from adapters_registry import DatabaseError
from adapters_registry.model import RegistrySnapshot
from serving.engine.base import EngineState
from serving.engine.remote import RemoteVllm
from serving.gateway import create_app
from tests.serving.gateway.conftest import Endpoint


async def test_a_slow_reading_of_the_registry_never_undoes_a_later_one(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway, read, go_on = endpoint.gateway, threading.Event(), threading.Event()
    snapshot = gateway.registry.snapshot

    def slow() -> RegistrySnapshot:
        taken = snapshot()
        read.set()
        go_on.wait(5)
        return taken

    monkeypatch.setattr(gateway.registry, "snapshot", slow)
    early = asyncio.create_task(gateway.refresh())
    await asyncio.to_thread(read.wait, 5)
    monkeypatch.setattr(gateway.registry, "snapshot", snapshot)
    retired = endpoint.http.delete("/v1/adapters/extra")
    late = asyncio.create_task(retired)
    await asyncio.sleep(0.1)
    go_on.set()
    await asyncio.gather(early, late)
    assert "extra" not in gateway.registered.newest


async def test_a_start_that_fails_leaves_no_engine_running(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = endpoint.gateway

    def broken() -> RegistrySnapshot:
        raise DatabaseError("the database is gone")

    monkeypatch.setattr(gateway.registry, "snapshot", broken)
    app = create_app(gateway)
    with pytest.raises(DatabaseError):
        async with app.routes.router.lifespan_context(app.routes):
            pass
    assert {engine.status.state for engine in endpoint.fleet.engines} == {EngineState.STOPPED}


async def test_an_engine_that_will_not_come_back_is_not_told_to_be_starting(endpoint: Endpoint) -> None:
    engine = endpoint.fleet.engines[0]
    await engine.stop()
    answered = await endpoint.http.get("/ready")
    assert (answered.status_code, answered.json()["status"]) == (503, "starting")
    assert isinstance(engine, RemoteVllm)
    engine._board.become(EngineState.FAILED, "gone for good")
    answered = await endpoint.http.get("/ready")
    assert (answered.status_code, answered.json()["status"]) == (503, "failed")
    assert answered.headers["retry-after"]

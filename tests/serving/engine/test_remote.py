from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from configs.settings import EngineSettings, Settings, SettingsError
from serving.engine import remote
from serving.engine.base import EngineState
from serving.engine.factory import build_engines
from serving.engine.remote import OpenAIUpstream, RemoteVllm
from serving.errors import AdapterLoadFailed, EngineUnavailable
from tests.engine import adapter_at, ask
from tests.serving.engine.stock import StockServer, listening


@pytest.fixture(autouse=True)
def fast_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RemoteVllm, "poll_s", 0.02)
    monkeypatch.setattr(OpenAIUpstream, "poll_s", 0.02)


@asynccontextmanager
async def remote_engine(url: str, **settings: object) -> AsyncIterator[RemoteVllm]:
    fields = {"name": "far", "kind": "vllm-remote", "url": url, "model": "org/base", **settings}
    engine = RemoteVllm(EngineSettings.model_validate(fields), environ={"KEY": "k"}, request_timeout_s=5)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def until(engine: RemoteVllm, *, generation: int | None = None, state: EngineState | None = None) -> None:
    async with asyncio.timeout(5):
        while generation not in {None, engine.status.generation} or state not in {None, engine.status.state}:  # noqa: ASYNC110 - also sees what no callback tells
            await asyncio.sleep(0.01)


async def test_it_learns_the_base_of_the_server(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    server = StockServer()
    server.base |= {"id": "served-name", "root": str(tmp_path)}
    async with listening(server), remote_engine(server.url) as engine:
        await engine.wait_ready(5)
        assert (engine.base_name, engine.upstream_model, engine.max_context) == ("base", "served-name", 77)
        assert engine.model_path == tmp_path
        assert {"base", "org/base", "served-name", str(tmp_path)} <= set(engine.base_aliases)
        assert (await ask(engine, engine.upstream_model))[0] == 200
        assert b"# TYPE" in await engine.scrape_metrics()


async def test_adapters_are_loaded_and_unloaded(tmp_path: Path) -> None:
    adapter = adapter_at(tmp_path, 1)
    async with listening(StockServer()) as server, remote_engine(server.url, slots=3) as engine:
        await engine.wait_ready(5)
        assert engine.slots == 3
        await engine.load(adapter)
        await engine.load(adapter)
        assert server.adapters == {adapter.engine_name: str(tmp_path)}
        await engine.unload(adapter.engine_name, adapter.engine_id)
        await engine.unload(adapter.engine_name, adapter.engine_id)
        assert server.adapters == {}


async def test_an_adapter_of_that_name_from_elsewhere_is_refused(tmp_path: Path) -> None:
    adapter = adapter_at(tmp_path, 1)
    async with listening(StockServer()) as server, remote_engine(server.url) as engine:
        await engine.wait_ready(5)
        server.adapters[adapter.engine_name] = "/other/weights"
        with pytest.raises(AdapterLoadFailed, match="already been loaded"):
            await engine.load(adapter)


async def test_a_refused_load_tells_the_servers_reason(tmp_path: Path) -> None:
    async with listening(StockServer()) as server, remote_engine(server.url) as engine:
        await engine.wait_ready(5)
        with pytest.raises(AdapterLoadFailed, match="No adapter found"):
            await engine.load(adapter_at(tmp_path / "bad", 1))


async def test_a_server_without_runtime_updating_is_told_with_the_variable_to_set(tmp_path: Path) -> None:
    async with listening(StockServer(updating=False)) as server, remote_engine(server.url) as engine:
        await engine.wait_ready(5)
        with pytest.raises(AdapterLoadFailed, match="VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
            await engine.load(adapter_at(tmp_path, 1))


async def test_a_server_that_was_away_comes_back_as_another_generation() -> None:
    server = StockServer()
    async with listening(server), remote_engine(server.url) as engine:
        await engine.wait_ready(5)
        server.status = 503
        await until(engine, state=EngineState.RESTARTING)
        assert "not now" in engine.status.detail
        with pytest.raises(EngineUnavailable):
            await ask(engine, "org/base")
        server.status = 200
        await engine.wait_ready(5)
        assert (engine.status.generation, engine.status.restarts) == (2, 1)


async def test_a_server_that_restarted_between_two_polls_is_another_generation(tmp_path: Path) -> None:
    async with listening(StockServer()) as server, remote_engine(server.url) as engine:
        await engine.wait_ready(5)
        await engine.load(adapter_at(tmp_path, 1))
        server.adapters.clear()
        await until(engine, generation=2)
        await asyncio.sleep(0.1)
        assert engine.status.generation == 2


async def test_a_server_that_is_not_there_or_no_such_server_is_told() -> None:
    async with remote_engine("http://127.0.0.1:9") as engine:
        with pytest.raises(EngineUnavailable, match="cannot be reached"):
            await engine.wait_ready(0.2)
        assert engine.status.generation == 0


async def test_the_key_is_sent_and_a_missing_one_is_told_by_its_variable() -> None:
    async with listening(StockServer(key="k")) as server:
        async with remote_engine(server.url, api_key_env="KEY") as engine:
            await engine.wait_ready(5)
        async with remote_engine(server.url) as engine:
            with pytest.raises(EngineUnavailable, match="401"):
                await engine.wait_ready(0.2)
    with pytest.raises(SettingsError, match="NO_SUCH"):
        async with remote_engine("http://127.0.0.1:9", api_key_env="NO_SUCH"):
            pass


async def test_an_upstream_answers_for_its_base_and_takes_no_adapters(tmp_path: Path) -> None:
    async with listening(StockServer()) as server:
        settings = EngineSettings(
            name="strong", kind="openai", url=server.url + "/v1", model="big-model", served_name="big"
        )
        engine = OpenAIUpstream(settings, environ={}, request_timeout_s=5)
        await engine.start()
        await engine.wait_ready(5)
        assert (engine.base_name, engine.upstream_model, engine.slots) == ("big", "big-model", 0)
        assert (await ask(engine, engine.upstream_model))[1]["model"] == "big-model"
        with pytest.raises(AdapterLoadFailed):
            await engine.load(adapter_at(tmp_path, 1))
        await engine.unload("x@1", 1)
        await engine.stop()


async def test_a_url_alone_makes_an_engine_named_after_the_base_it_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening(StockServer()) as server:
        engines = await asyncio.to_thread(build_engines, Settings(engine=server.url), {})
    assert [(engine.base_name, engine.upstream_model) for engine in engines] == [("base", "org/base")]


def test_a_url_that_nobody_answers_makes_an_engine_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    (engine,) = build_engines(Settings(engine="http://127.0.0.1:9"), {})
    assert isinstance(engine, RemoteVllm)
    assert engine.slots == remote.DEFAULT_SLOTS

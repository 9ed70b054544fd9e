"""What every engine promises, for the real vLLM and for the fake. Subclasses give `engine` and `running`."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable

import pytest

from serving.engine.base import Engine, EngineState
from serving.errors import AdapterLoadFailed
from tests.engine import MakeAdapter, ask, chat_body

Running = Callable[[str], Awaitable[int]]
LONG = {"max_tokens": 1500, "ignore_eos": True, "stream": True}


async def becomes_idle(running: Running, model: str, within_s: float = 5.0) -> bool:
    async with asyncio.timeout(within_s):
        while await running(model):  # noqa: ASYNC110 - the engine tells only when asked
            await asyncio.sleep(0.02)
    return True


class EngineContract:
    async def test_a_ready_engine_answers_for_its_base(self, engine: Engine) -> None:
        await engine.wait_ready(1)
        status, answer = await ask(engine, engine.upstream_model)
        assert (status, engine.status.state) == (200, EngineState.READY)
        assert answer["model"] == engine.upstream_model
        assert engine.status.generation >= 1
        assert engine.max_context

    async def test_a_loaded_adapter_answers_and_an_unloaded_one_is_unknown(
        self, engine: Engine, make_adapter: MakeAdapter
    ) -> None:
        adapter = make_adapter()
        assert (await ask(engine, adapter.engine_name))[0] == 404
        await engine.load(adapter)
        status, answer = await ask(engine, adapter.engine_name)
        assert (status, answer["model"]) == (200, adapter.engine_name)
        await engine.unload(adapter.engine_name, adapter.engine_id)
        assert (await ask(engine, adapter.engine_name))[0] == 404

    async def test_loading_again_and_unloading_the_absent_do_nothing(
        self, engine: Engine, make_adapter: MakeAdapter
    ) -> None:
        adapter = make_adapter()
        await engine.unload(adapter.engine_name, adapter.engine_id)
        await asyncio.gather(engine.load(adapter), engine.load(adapter))
        await engine.load(adapter)
        assert (await ask(engine, adapter.engine_name))[0] == 200
        await engine.unload(adapter.engine_name, adapter.engine_id)
        await engine.unload(adapter.engine_name, adapter.engine_id)

    async def test_more_adapters_than_slots_are_refused_until_one_leaves(
        self, engine: Engine, make_adapter: MakeAdapter
    ) -> None:
        adapters = [make_adapter() for _ in range(engine.slots + 1)]
        for adapter in adapters[:-1]:
            await engine.load(adapter)
        with pytest.raises(AdapterLoadFailed):
            await engine.load(adapters[-1])
        await engine.unload(adapters[0].engine_name, adapters[0].engine_id)
        await engine.load(adapters[-1])
        assert (await ask(engine, adapters[-1].engine_name))[0] == 200
        assert (await ask(engine, adapters[1].engine_name))[0] == 200

    async def test_a_missing_folder_is_refused_and_harms_nothing(
        self, engine: Engine, make_adapter: MakeAdapter
    ) -> None:
        adapter = make_adapter()
        shutil.rmtree(adapter.path)
        with pytest.raises(AdapterLoadFailed, match=adapter.engine_name):
            await engine.load(adapter)
        assert (await ask(engine, engine.upstream_model))[0] == 200
        assert (await ask(engine, adapter.engine_name))[0] == 404

    async def test_an_adapter_whose_folder_vanishes_after_the_load_still_answers(
        self, engine: Engine, make_adapter: MakeAdapter
    ) -> None:
        adapter = make_adapter()
        await engine.load(adapter)
        shutil.rmtree(adapter.path)
        assert (await ask(engine, adapter.engine_name))[0] == 200

    async def test_a_stream_arrives_in_events_and_ends(self, engine: Engine) -> None:
        # An engine that falls behind sends several tokens in one event, so many tokens for a few events.
        body = chat_body(engine.upstream_model, stream=True, ignore_eos=True, max_tokens=64)
        async with engine.open("/v1/chat/completions", body) as response:
            assert response.status == 200
            assert response.headers["content-type"].startswith("text/event-stream")
            text = b"".join([chunk async for chunk in response.chunks()])
        assert text.count(b"data: ") >= 8
        assert text.endswith(b"data: [DONE]\n\n")

    async def test_leaving_a_stream_early_ends_the_engines_work(
        self, engine: Engine, make_adapter: MakeAdapter, running: Running
    ) -> None:
        adapter = make_adapter()
        await engine.load(adapter)
        async with engine.open("/v1/chat/completions", chat_body(adapter.engine_name, **LONG)) as response:
            async for _ in response.chunks():
                break
            assert await running(adapter.engine_name) == 1
        assert await becomes_idle(running, adapter.engine_name)

    async def test_cancelling_a_request_ends_the_engines_work(self, engine: Engine, running: Running) -> None:
        task = asyncio.create_task(ask(engine, engine.upstream_model, max_tokens=1500, ignore_eos=True))
        async with asyncio.timeout(5):
            while not await running(engine.upstream_model):  # noqa: ASYNC110 - as above
                await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await becomes_idle(running, engine.upstream_model)

    async def test_unloading_waits_for_the_requests_that_use_the_adapter(
        self, engine: Engine, make_adapter: MakeAdapter, running: Running
    ) -> None:
        adapter = make_adapter()
        await engine.load(adapter)
        body = chat_body(adapter.engine_name, stream=True, max_tokens=400, ignore_eos=True)
        async with engine.open("/v1/chat/completions", body) as response:
            chunks = response.chunks()
            await anext(chunks)
            unload = asyncio.create_task(engine.unload(adapter.engine_name, adapter.engine_id))
            await asyncio.sleep(0.1)
            assert await running(adapter.engine_name) == 1
            assert not unload.done()
            rest = b"".join([chunk async for chunk in chunks])
        await unload
        assert rest.endswith(b"data: [DONE]\n\n")
        assert b'"error"' not in rest

    async def test_its_own_metrics_can_be_read(self, engine: Engine) -> None:
        assert b"# TYPE" in await engine.scrape_metrics()

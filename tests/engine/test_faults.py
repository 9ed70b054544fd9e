"""Broken adapters never harm the engine, and a killed engine comes back by itself."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adapters_registry.model import AdapterVersion
from serving.engine.base import EngineState, EngineStatus
from serving.engine.process import VllmEngine
from serving.errors import AdapterLoadFailed, EngineUnavailable
from tests.engine import MakeAdapter, ask, chat_body
from tests.engine.conftest import START_TIMEOUT_S
from tests.engine.processes import group_of

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

PROMPT_S = 3.0


def garbage(adapter: AdapterVersion) -> None:
    (adapter.path / "adapter_model.safetensors").write_bytes(os.urandom(4096))


def cut(adapter: AdapterVersion) -> None:
    file = adapter.path / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])


def empty(adapter: AdapterVersion) -> None:
    (adapter.path / "adapter_model.safetensors").write_bytes(b"")


def no_config(adapter: AdapterVersion) -> None:
    (adapter.path / "adapter_config.json").unlink()


def foreign_modules(adapter: AdapterVersion) -> None:
    save_file({"model.layers.0.nothing": np.zeros((2, 2), np.float32)}, adapter.path / "adapter_model.safetensors")


def one_wrong_shape(adapter: AdapterVersion) -> None:
    tensors = load_file(adapter.path / "adapter_model.safetensors")
    last = sorted(tensors)[-1]
    tensors[last] = np.zeros((7, 5), np.float32)
    save_file(tensors, adapter.path / "adapter_model.safetensors")


def half_missing(adapter: AdapterVersion) -> None:
    tensors = load_file(adapter.path / "adapter_model.safetensors")
    del tensors[sorted(tensors)[0]]
    save_file(tensors, adapter.path / "adapter_model.safetensors")


def dora(adapter: AdapterVersion) -> None:
    file = adapter.path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"use_dora": True}))


@pytest.mark.parametrize("damage", [garbage, cut, empty, no_config, foreign_modules, half_missing, dora])
async def test_a_damaged_adapter_is_refused_and_its_slot_stays_free(
    vllm_engine: VllmEngine, make_adapter: MakeAdapter, damage: Callable[[AdapterVersion], None]
) -> None:
    generation = vllm_engine.status.generation
    for _ in range(vllm_engine.slots + 1):
        adapter = make_adapter()
        damage(adapter)
        with pytest.raises(AdapterLoadFailed) as refused:
            await vllm_engine.load(adapter)
        assert "\n" not in refused.value.message
        assert (await ask(vllm_engine, adapter.engine_name))[0] == 404
    assert (await ask(vllm_engine, vllm_engine.base_name))[0] == 200
    for _ in range(vllm_engine.slots):
        await vllm_engine.load(make_adapter())
    assert vllm_engine.status.generation == generation


async def test_weights_narrower_than_the_base_harm_no_other_request(
    vllm_engine: VllmEngine, make_adapter: MakeAdapter
) -> None:
    # vLLM copies them into a corner of its slot without a word; the registry is what refuses them.
    adapter = make_adapter()
    one_wrong_shape(adapter)
    await vllm_engine.load(adapter)
    assert (await ask(vllm_engine, adapter.engine_name))[0] == 200
    assert (await ask(vllm_engine, vllm_engine.base_name))[0] == 200


@pytest.mark.parametrize("shape", [{"rank": 64}, {"width": 300}])
async def test_an_adapter_that_does_not_fit_is_refused(
    vllm_engine: VllmEngine, make_adapter: MakeAdapter, shape: dict[str, int]
) -> None:
    with pytest.raises(AdapterLoadFailed):
        await vllm_engine.load(make_adapter(**shape))
    good = make_adapter()
    await vllm_engine.load(good)
    assert (await ask(vllm_engine, good.engine_name))[0] == 200


async def test_adapters_answer_by_their_own_weights_also_after_a_slot_was_used_by_others(
    vllm_engine: VllmEngine, make_adapter: MakeAdapter
) -> None:
    adapters = [make_adapter(scale=0.5) for _ in range(2 * vllm_engine.slots)]
    answers = []
    for adapter in adapters:
        await vllm_engine.load(adapter)
        answers.append((await ask(vllm_engine, adapter.engine_name))[1]["choices"][0]["message"]["content"])
        await vllm_engine.unload(adapter.engine_name, adapter.engine_id)
    assert len(set(answers)) > 1
    for adapter, answer in zip(adapters, answers, strict=True):
        await vllm_engine.load(adapter)
        _, again = await ask(vllm_engine, adapter.engine_name)
        assert again["choices"][0]["message"]["content"] == answer
        await vllm_engine.unload(adapter.engine_name, adapter.engine_id)


@pytest.mark.parametrize("victim", ["core", "api"])
async def test_a_killed_engine_fails_requests_at_once_and_comes_back_empty(
    vllm_engine: VllmEngine, make_adapter: MakeAdapter, victim: str
) -> None:
    adapter = make_adapter()
    await vllm_engine.load(adapter)
    before = vllm_engine.status
    seen: list[EngineStatus] = []
    vllm_engine.on_change(seen.append)
    assert before.pid
    group = group_of(before.pid)
    stream = chat_body(adapter.engine_name, stream=True, max_tokens=1500, ignore_eos=True)

    async def whole() -> None:
        await ask(vllm_engine, adapter.engine_name, max_tokens=1500, ignore_eos=True)

    in_flight = asyncio.create_task(whole())
    async with vllm_engine.open("/v1/chat/completions", stream) as response:
        chunks = response.chunks()
        await anext(chunks)
        os.kill(before.pid if victim == "api" else core_of(group), signal.SIGKILL)
        killed_at = time.monotonic()
        with pytest.raises(EngineUnavailable):
            async for _ in chunks:
                pass
    with pytest.raises(EngineUnavailable):
        await in_flight
    assert time.monotonic() - killed_at < PROMPT_S
    async with asyncio.timeout(PROMPT_S):
        while not seen:  # noqa: ASYNC110 - the callback is what is tested
            await asyncio.sleep(0.01)
    await vllm_engine.wait_ready(START_TIMEOUT_S)
    assert (vllm_engine.status.generation, vllm_engine.status.restarts) == (before.generation + 1, before.restarts + 1)
    assert seen[0].state is EngineState.RESTARTING
    assert (await ask(vllm_engine, adapter.engine_name))[0] == 404
    await vllm_engine.load(adapter)
    assert (await ask(vllm_engine, adapter.engine_name))[0] == 200
    assert not group_of(before.pid)


def core_of(group: dict[int, str]) -> int:
    return next(pid for pid, title in group.items() if "EngineCore" in title)

"""The order of loads and unloads in the engine's process, with spare slots."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from serving.engine.worker.adapters import Adapters, LoadRefused


class Engine:
    """Slots that notice when more adapters are in them than there are."""

    dead = False

    def __init__(self, slots: int, spare: int) -> None:
        self.slots = slots
        self.spare = spare
        self.resident: set[int] = set()
        self.most = 0
        self.published: dict[str, int] = {}
        self.requests: Counter[str | None] = Counter()
        self.refuse = False
        self.stuck = 0

    def adapters(self) -> dict[str, int]:
        return self.published

    def running(self) -> Counter[str | None]:
        return self.requests

    async def add(self, name: str, engine_id: int, path: str, digest: str) -> None:
        if self.refuse:
            raise ValueError("Call to add_lora method failed: no\nsuch thing")
        self.resident.add(engine_id)
        self.most = max(self.most, len(self.resident))
        await asyncio.sleep(0.002)

    async def remove(self, engine_id: int) -> None:
        await asyncio.sleep(0)
        if self.stuck:
            self.stuck -= 1
            raise RuntimeError("not now")
        self.resident.discard(engine_id)

    def publish(self, name: str, engine_id: int, path: str) -> None:
        self.published[name] = engine_id

    def withdraw(self, name: str) -> None:
        self.published.pop(name, None)


async def load(adapters: Adapters, number: int, folder: Path) -> None:
    await adapters.load(f"a{number}", number, str(folder), f"digest{number}")


@pytest.mark.parametrize("spare", [0, 1, 2])
async def test_never_more_adapters_than_slots_and_spare_ones(tmp_path: Path, spare: int) -> None:
    engine = Engine(2, spare)
    adapters = Adapters(engine)
    await load(adapters, 1, tmp_path)
    await load(adapters, 2, tmp_path)
    with pytest.raises(LoadRefused, match="all 2 slots"):
        await load(adapters, 3, tmp_path)
    for number in range(3, 9):
        await adapters.unload(f"a{number - 2}", number - 2)
        await load(adapters, number, tmp_path)
        assert set(engine.published) == {f"a{number - 1}", f"a{number}"}
    assert engine.most == 2 + min(spare, 2)


async def test_with_a_spare_slot_the_next_adapter_does_not_wait_for_the_last_to_go(tmp_path: Path) -> None:
    engine = Engine(1, 1)
    adapters = Adapters(engine)
    await load(adapters, 1, tmp_path)
    await adapters.unload("a1", 1)
    await load(adapters, 2, tmp_path)
    assert engine.resident == {1, 2}
    await asyncio.sleep(0.1)
    assert engine.resident == {2}


async def test_loads_that_come_together_get_slots_as_these_become_free(tmp_path: Path) -> None:
    engine = Engine(3, 1)
    adapters = Adapters(engine)
    await asyncio.gather(*(load(adapters, number, tmp_path) for number in range(1, 4)))
    for number in range(1, 4):
        await adapters.unload(f"a{number}", number)
    engine.requests["a2"] = engine.requests["a3"] = 1  # came late
    loading = [asyncio.create_task(load(adapters, number, tmp_path)) for number in range(4, 7)]
    await asyncio.wait(loading, timeout=0.2)
    assert [task.done() for task in loading] == [True, True, False]
    assert engine.resident == {2, 3, 4, 5}
    engine.requests.clear()
    await loading[2]
    assert engine.most == 4


async def test_a_load_that_is_cut_off_leaves_its_slot_to_others(tmp_path: Path) -> None:
    engine = Engine(1, 0)
    adapters = Adapters(engine)
    await load(adapters, 1, tmp_path)
    engine.requests["a1"] = 1  # it leaves slowly
    unloading = asyncio.create_task(adapters.unload("a1", 1))
    await asyncio.sleep(0.02)
    engine.requests.clear()
    await unloading
    engine.requests["a1"] = 1
    for number in (2, 1):  # waits for the slot; waits for its own leaving
        waiting = asyncio.create_task(load(adapters, number, tmp_path))
        await asyncio.sleep(0.02)
        waiting.cancel()
        await asyncio.wait([waiting])
        await adapters.unload(f"a{number}", number)
    engine.requests.clear()
    for number in (3, 4):
        async with asyncio.timeout(5):
            await load(adapters, number, tmp_path)
        assert engine.resident == {number}
        await adapters.unload(f"a{number}", number)
    assert engine.most == 1


async def test_an_adapter_that_is_wanted_back_comes_back(tmp_path: Path) -> None:
    engine = Engine(1, 1)
    adapters = Adapters(engine)
    for _ in range(3):
        await load(adapters, 1, tmp_path)
        assert engine.published == {"a1": 1}
        await adapters.unload("a1", 1)
        await adapters.unload("a1", 1)
        assert engine.published == {}


async def test_unloading_waits_for_running_requests_and_for_one_that_comes_late(tmp_path: Path) -> None:
    engine = Engine(1, 1)
    adapters = Adapters(engine)
    await load(adapters, 1, tmp_path)
    engine.requests["a1"] = 1
    unloading = asyncio.create_task(adapters.unload("a1", 1))
    await asyncio.sleep(0.05)
    assert not unloading.done()
    engine.requests["a1"] = 0
    await unloading
    engine.requests["a1"] = 1  # resolved before the name was withdrawn
    await asyncio.sleep(0.1)
    assert engine.resident == {1}
    engine.requests["a1"] = 0
    await asyncio.sleep(0.1)
    assert engine.resident == set()


async def test_a_refused_adapter_leaves_its_slot(tmp_path: Path) -> None:
    engine = Engine(1, 0)
    adapters = Adapters(engine)
    engine.refuse = True
    with pytest.raises(LoadRefused, match=r"^no such thing$"):
        await load(adapters, 1, tmp_path)
    engine.refuse = False
    await load(adapters, 2, tmp_path)
    assert engine.published == {"a2": 2}


async def test_a_slot_that_cannot_be_freed_at_once_is_freed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.engine.worker.adapters.RETRY_S", 0.01)
    engine = Engine(1, 0)
    adapters = Adapters(engine)
    await load(adapters, 1, tmp_path)
    engine.stuck = 2
    await adapters.unload("a1", 1)
    await load(adapters, 2, tmp_path)
    assert engine.resident == {2}

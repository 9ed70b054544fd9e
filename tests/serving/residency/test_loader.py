"""Several loads at once, and what becomes of those behind them."""

import asyncio
import time
from collections.abc import Callable

import pytest

from adapters_registry.model import AdapterVersion
from serving.errors import AdapterLoadFailed, EngineUnavailable
from serving.residency import Patience, Residency, StillCold
from tests.serving.residency.conftest import SlotEngine
from tests.serving.residency.test_residency import WAIT, running, using

Make = Callable[..., AdapterVersion]


async def test_a_load_does_not_wait_for_one_that_takes_long_and_slots_are_given_in_order(make_adapter: Make) -> None:
    engine, adapters = SlotEngine(slots=3, staging=True, loads_at_once=2), [make_adapter(n) for n in range(5)]
    slow = engine.slow[adapters[0].engine_name] = asyncio.Event()
    async with running(engine) as residency:
        waiting = [asyncio.create_task(residency.hold(adapter, WAIT).__aenter__()) for adapter in adapters]
        await asyncio.sleep(0.15)
        assert [task.done() for task in waiting] == [False, True, True, False, False]
        assert residency.waiting == 3
        assert engine.most_loading == 2
        slow.set()
        for task in waiting:
            held = await task
            await held.__aexit__(None, None, None)
        assert not residency.waiting


async def test_a_death_in_the_middle_of_several_loads_only_delays_them(make_adapter: Make) -> None:
    engine, adapters = (
        SlotEngine(slots=3, load_s=0.05, staging=True, loads_at_once=3),
        [make_adapter(n) for n in range(3)],
    )
    async with running(engine) as residency:
        waiting = [asyncio.create_task(residency.hold(adapter, WAIT).__aenter__()) for adapter in adapters]
        await asyncio.sleep(0.02)
        engine.die()
        await asyncio.sleep(0.15)
        assert residency.waiting == 3
        engine.come_back()
        for task in waiting:
            held = await task
            await held.__aexit__(None, None, None)
        assert engine.loaded == {adapter.engine_name for adapter in adapters}


async def test_slow_loads_for_one_slot_serve_who_waits_for_them(make_adapter: Make) -> None:
    """A load outlasts the patience of the one behind it, which must not make it leave before it was used."""
    engine, adapters = (
        SlotEngine(slots=1, load_s=0.3, staging=True, loads_at_once=2),
        [make_adapter(n) for n in range(2)],
    )
    async with running(engine) as residency:

        async def request(adapter: AdapterVersion) -> None:
            async with using(residency, adapter):
                await asyncio.sleep(0.01)

        async with asyncio.timeout(3):
            await asyncio.gather(*(request(adapter) for adapter in adapters))
    assert engine.loads.total() == 2


async def test_loads_that_a_death_undid_keep_their_order(make_adapter: Make) -> None:
    engine, adapters = (
        SlotEngine(slots=3, load_s=0.02, staging=True, loads_at_once=3),
        [make_adapter(n) for n in range(4)],
    )
    async with running(engine) as residency:
        waiting = [asyncio.create_task(residency.hold(adapter, WAIT).__aenter__()) for adapter in adapters]
        await asyncio.sleep(0.01)
        engine.die()
        await asyncio.sleep(0.15)
        engine.loads_at_once = 1
        engine.come_back()
        for task in waiting[:3]:
            held = await task
            await held.__aexit__(None, None, None)
        await waiting[3]
        assert list(engine.loads) == [adapter.engine_name for adapter in adapters]


async def test_a_request_behind_a_slow_load_goes_to_the_base_at_once(make_adapter: Make) -> None:
    engine, adapters = SlotEngine(slots=3, load_s=1.0), [make_adapter(n) for n in range(3)]
    async with running(engine) as residency:
        async with using(residency, adapters[0]):  # the first load tells how long they take
            pass
        loading = asyncio.create_task(residency.hold(adapters[1], WAIT).__aenter__())
        await asyncio.sleep(0.05)
        began = time.monotonic()
        with pytest.raises(StillCold):
            async with residency.hold(adapters[2], Patience(0.2, 5)):
                pass
        assert time.monotonic() - began < 0.15
        await loading


async def test_a_load_that_fails_in_an_unknown_way_fails_its_requests_alone(
    make_adapter: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, bad, good = SlotEngine(), make_adapter(1), make_adapter(2)
    load, outcomes = engine.load, []

    async def broken(adapter: AdapterVersion) -> None:
        if adapter is bad:
            raise KeyError("a defect")
        await load(adapter)

    monkeypatch.setattr(engine, "load", broken)
    residency = Residency(engine, on_load=lambda _, outcome: outcomes.append(outcome))
    residency.start()
    with pytest.raises(AdapterLoadFailed, match="a defect"):
        async with residency.hold(bad, WAIT):
            pass
    async with residency.hold(good, WAIT):
        pass
    await residency.stop()
    assert outcomes == ["failed", "ok"]


async def test_stopping_ends_the_loads_under_way(make_adapter: Make) -> None:
    engine, adapters = SlotEngine(slots=3, load_s=5, staging=True, loads_at_once=2), [make_adapter(n) for n in range(2)]
    async with running(engine) as residency:
        waiting = [asyncio.create_task(residency.hold(adapter, WAIT).__aenter__()) for adapter in adapters]
        await asyncio.sleep(0.02)
        assert engine.loading == 2
        await residency.stop()
        assert engine.loading == 0
        for task in waiting:
            with pytest.raises(EngineUnavailable, match="shutting down"):
                await task

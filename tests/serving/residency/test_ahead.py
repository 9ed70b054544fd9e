"""What is done before anybody's turn, and that everybody's turn comes."""

import asyncio
import contextlib
import time
from collections.abc import Callable

from adapters_registry.model import AdapterVersion, RegistrySnapshot
from serving.fleet import LocalFleet
from serving.metrics import Metrics
from serving.residency import AdapterState, Patience
from serving.residency.ahead import AHEAD
from serving.residency.demand import HALF_LIFE_S, Demand
from tests.serving.residency.conftest import SlotEngine
from tests.serving.residency.test_residency import WAIT, running, using
from tests.serving.waiting import until

Make = Callable[..., AdapterVersion]


async def test_those_that_come_next_are_brought_near_while_no_slot_is_free(make_adapter: Make) -> None:
    engine, adapters = SlotEngine(slots=1, staging=True), [make_adapter(number) for number in range(AHEAD + 4)]
    async with running(engine) as residency, contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(using(residency, adapters[0]))
        waiting = [asyncio.create_task(residency.hold(adapter, WAIT).__aenter__()) for adapter in adapters[1:]]
        await asyncio.sleep(0.05)
        assert engine.staged == [adapter.engine_name for adapter in adapters[1 : AHEAD + 1]]
        for task in waiting:
            task.cancel()


async def test_new_adapters_are_prepared_and_what_finds_no_slot_is_brought_near(make_adapter: Make) -> None:
    engine, adapters = SlotEngine(slots=1, staging=True), [make_adapter(number) for number in range(3)]
    async with running(engine) as residency:
        residency.prepare(adapters)
        residency.prefetch(adapters[:2])
        await until(lambda: engine.loaded)
        assert engine.prepared == [adapter.engine_name for adapter in adapters]
        assert engine.staged == [adapters[1].engine_name]
        residency.prepare(adapters)
        residency.prefetch(adapters[:2])
        await asyncio.sleep(0.02)
        assert len(engine.prepared) == 3, "prepared again"
        assert len(engine.staged) == 1, "brought near again"
        engine.die()
        engine.come_back()
        residency.prepare(adapters)
        await asyncio.sleep(0.02)
        assert len(engine.prepared) == 6, "host memory stays empty after a restart"


async def test_without_staging_nothing_is_done_ahead(make_adapter: Make) -> None:
    engine, adapters = SlotEngine(slots=1), [make_adapter(number) for number in range(3)]
    async with running(engine) as residency:
        for adapter in adapters[:2]:
            async with using(residency, adapter):
                pass
        residency.prepare(adapters)
        residency.prefetch(adapters)
        await residency.unload(adapters[1])
        await until(lambda: not engine.loaded)
        await asyncio.sleep(0.05)
        assert engine.staged == [adapter.engine_name for adapter in adapters[:2]], "read before their loads alone"
        assert not engine.prepared
        assert not engine.loaded


async def test_what_is_registered_while_the_engine_runs_is_prepared_before_anybody_asks(make_adapter: Make) -> None:
    engine, old, new = SlotEngine(staging=True), make_adapter(1), make_adapter(2)
    fleet = LocalFleet([engine], Metrics(), prefetch=False)
    fleet.adopt(RegistrySnapshot(1, {old.engine_name: old}))
    fleet.adopt(RegistrySnapshot(2, {old.engine_name: old, new.engine_name: new}))
    fleet.adopt(RegistrySnapshot(3, {new.engine_name: new}))
    await asyncio.sleep(0.05)
    assert engine.prepared == [old.engine_name, new.engine_name]
    assert not engine.loads


async def test_a_slot_that_becomes_free_goes_to_what_is_most_in_demand(make_adapter: Make) -> None:
    engine, often, seldom, last = SlotEngine(slots=2, staging=True), make_adapter(1), make_adapter(2), make_adapter(3)
    async with running(engine, clock=lambda: 0.0) as residency:
        for adapter in (often, often, often, seldom, last):
            async with using(residency, adapter):
                pass
        assert engine.loaded == {seldom.engine_name, last.engine_name}
        await residency.unload(last)
        await until(lambda: engine.loaded == {seldom.engine_name, often.engine_name})
        await asyncio.sleep(0.05)
        assert engine.loads[last.engine_name] == 1, "what was unloaded on purpose came back"


async def test_under_contention_nobody_waits_longer_than_the_others_take(make_adapter: Make) -> None:
    engine, adapters = SlotEngine(slots=2, load_s=0.002), [make_adapter(number) for number in range(8)]
    until_s = time.monotonic() + 2.5
    served: dict[str, int] = {}
    async with running(engine) as residency:

        async def client(adapter: AdapterVersion) -> None:
            while time.monotonic() < until_s:
                async with using(residency, adapter, Patience(None, 10)):
                    await asyncio.sleep(0.02)
                    served[adapter.name] = served.get(adapter.name, 0) + 1

        await asyncio.gather(*(client(adapter) for adapter in adapters for _ in range(2)))
        assert len(served) == len(adapters)
        assert residency.longest_wait_s < 2.0
        assert all(entry.state is not AdapterState.LOADING for entry in residency.entries())


def test_demand_fades() -> None:
    now = 0.0
    demand = Demand(lambda: now)
    for name in ("a", "a", "a", "b", "b", "c"):
        demand.note(name)
    assert demand.ranked() == ["a", "b", "c"]
    now = HALF_LIFE_S
    assert demand.of("a") == 1.5
    now = 2 * HALF_LIFE_S
    demand.note("c")
    assert demand.ranked() == ["c", "a", "b"]
    now = 6 * HALF_LIFE_S
    assert demand.ranked() == []
    assert demand.of("a") == 0

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


async def test_those_that_come_next_are_brought_near_while_one_is_loaded(make_adapter: Make) -> None:
    engine, adapters = SlotEngine(slots=1), [make_adapter(number) for number in range(AHEAD + 4)]
    async with running(engine) as residency, contextlib.AsyncExitStack() as stack:
        await stack.enter_async_context(using(residency, adapters[0]))
        waiting = [asyncio.create_task(residency.hold(adapter, WAIT).__aenter__()) for adapter in adapters[1:]]
        await asyncio.sleep(0.05)
        assert engine.staged == [adapter.engine_name for adapter in adapters[: AHEAD + 2]]
        for task in waiting:
            task.cancel()


async def test_new_adapters_are_prepared_and_what_finds_no_slot_is_brought_near(make_adapter: Make) -> None:
    engine, adapters = SlotEngine(slots=1), [make_adapter(number) for number in range(3)]
    async with running(engine) as residency:
        residency.prepare(adapters)
        residency.prefetch(adapters[:2])
        await until(lambda: engine.loaded)
        assert engine.prepared == [adapter.engine_name for adapter in adapters]
        assert set(engine.staged) == {adapter.engine_name for adapter in adapters[:2]}


async def test_what_is_registered_while_the_engine_runs_is_prepared_before_anybody_asks(make_adapter: Make) -> None:
    engine, old, new = SlotEngine(), make_adapter(1), make_adapter(2)
    fleet = LocalFleet([engine], Metrics(), prefetch=False)
    fleet.adopt(RegistrySnapshot(1, {old.engine_name: old}))
    fleet.adopt(RegistrySnapshot(2, {old.engine_name: old, new.engine_name: new}))
    fleet.adopt(RegistrySnapshot(3, {new.engine_name: new}))
    await asyncio.sleep(0.05)
    assert engine.prepared == [new.engine_name]
    assert not engine.loads


async def test_a_slot_that_becomes_free_goes_to_what_is_most_in_demand(make_adapter: Make) -> None:
    engine, often, seldom, last = SlotEngine(slots=2), make_adapter(1), make_adapter(2), make_adapter(3)
    async with running(engine, clock=lambda: 0.0) as residency:
        for adapter in (often, often, often, seldom, last):
            async with using(residency, adapter):
                pass
        assert engine.loaded == {seldom.engine_name, last.engine_name}
        await residency.unload(last)
        await until(lambda: engine.loaded == {seldom.engine_name, often.engine_name})
        await asyncio.sleep(0.05)
        assert engine.loads[last.engine_name] == 1, "what was unloaded on purpose came back"


async def test_a_long_answer_on_what_drains_first_does_not_hold_up_those_who_wait(make_adapter: Make) -> None:
    engine, long, hot, cold = SlotEngine(slots=2), make_adapter(1), make_adapter(2), make_adapter(3)
    async with running(engine) as residency:
        stop = asyncio.Event()

        async def use(adapter: AdapterVersion, seconds: float) -> None:
            async with using(residency, adapter):
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), seconds)

        async def keep_busy() -> None:
            while not stop.is_set():
                await use(hot, 0.03)

        tasks = [asyncio.create_task(use(long, 30))]
        await until(lambda: engine.loaded)
        tasks += [asyncio.create_task(keep_busy()) for _ in range(3)]
        await until(lambda: len(engine.loaded) == 2)
        async with asyncio.timeout(3), using(residency, cold):
            assert long.engine_name in engine.loaded
        stop.set()
        await asyncio.gather(*tasks)


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

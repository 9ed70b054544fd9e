"""Adapters that take turns in slots which are all busy."""

import asyncio
import contextlib
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from adapters_registry.model import AdapterVersion
from serving.errors import Overloaded
from serving.residency import AdapterState, Entry, Hold, Patience, Residency
from tests.serving.residency.conftest import SlotEngine
from tests.serving.residency.test_residency import running, using

Make = Callable[..., AdapterVersion]
LONG = Patience(None, 600.0)


def tenfold() -> float:
    """A clock on which the waits of a turn are short; the loader still looks every quarter of a real second."""
    return 10 * time.monotonic()


def ask(residency: Residency, adapter: AdapterVersion, patience: Patience = LONG) -> asyncio.Task[Hold]:
    return asyncio.create_task(residency.hold(adapter, patience).__aenter__())


async def leave(*asked: asyncio.Task[Hold]) -> None:
    for task in asked:
        await (await task).__aexit__(None, None, None)


def entry(residency: Residency, adapter: AdapterVersion) -> Entry:
    found = residency.find(adapter.engine_name)
    assert found is not None
    return found


def draining(residency: Residency) -> list[AdapterVersion]:
    return [entry.adapter for entry in residency.slots.values() if entry.state is AdapterState.DRAINING]


async def until_drains(residency: Residency, *adapters: AdapterVersion) -> None:
    async with asyncio.timeout(5):
        while draining(residency) != [*adapters]:  # noqa: ASYNC110 - residency tells nobody
            await asyncio.sleep(0.01)


async def a_moment() -> None:
    await asyncio.sleep(0.02)


async def test_the_longest_turn_drains_and_another_if_that_takes_long(make_adapter: Make) -> None:
    engine, adapters = SlotEngine(slots=3), [make_adapter(number) for number in range(6)]
    async with running(engine) as residency:
        async with contextlib.AsyncExitStack() as stack:
            for adapter in adapters[:3]:
                await stack.enter_async_context(using(residency, adapter))
            async with using(residency, adapters[0]):  # the latest use is not what counts
                waiting = [ask(residency, adapter) for adapter in adapters[3:]]
                await until_drains(residency, adapters[0])
                first = time.monotonic()
                await until_drains(residency, *adapters[:2])
                assert time.monotonic() - first >= 1.9
        await leave(*waiting)


async def test_while_loading_is_what_takes_long_nothing_drains(make_adapter: Make) -> None:
    engine, (hot, idle, cold, *others) = SlotEngine(slots=3), [make_adapter(number) for number in range(6)]
    async with running(engine, clock=tenfold) as residency, using(residency, hot):
        await leave(ask(residency, idle))
        engine.slow[cold.engine_name] = asyncio.Event()
        waiting = [ask(residency, adapter) for adapter in (cold, *others)]
        await asyncio.sleep(0.3)
        residency.sync([hot, idle, cold, *others])  # has it look again
        await a_moment()
        assert not draining(residency)
        engine.slow[cold.engine_name].set()
        await leave(*waiting)


async def test_nothing_drains_before_it_had_its_turn(make_adapter: Make) -> None:
    engine, (hot, cold) = SlotEngine(slots=1), [make_adapter(number) for number in range(2)]
    async with running(engine) as residency, using(residency, hot):
        waiting = ask(residency, cold)
        began = entry(residency, hot).turn_at
        await until_drains(residency, hot)
        assert time.monotonic() - began >= 0.5
        waiting.cancel()


async def test_a_short_wait_makes_nothing_drain(make_adapter: Make) -> None:
    engine, (hot, cold) = SlotEngine(slots=1), [make_adapter(number) for number in range(2)]
    async with running(engine) as residency, using(residency, hot):
        entry(residency, hot).turn_at -= 100
        waiting = ask(residency, cold)
        await asyncio.sleep(0.2)
        assert not draining(residency)
        await until_drains(residency, hot)
        waiting.cancel()


async def test_an_adapter_that_drains_goes_on_when_nobody_needs_its_slot(make_adapter: Make) -> None:
    engine, (first, second, cold) = SlotEngine(slots=2), [make_adapter(number) for number in range(3)]
    async with running(engine, clock=tenfold) as residency, using(residency, first):
        async with using(residency, second):
            waiting = ask(residency, cold)
            await until_drains(residency, first)
            again = ask(residency, first)
            await asyncio.sleep(0.05)
            assert not again.done(), "cold was first"
        await leave(waiting, again)
        assert engine.loads[first.engine_name] == 1
        assert not draining(residency)
        assert residency.longest_wait_s >= 0.5, "the wait for going on counts too"


async def test_an_adapter_that_drains_goes_on_when_it_is_first_in_the_queue(make_adapter: Make) -> None:
    engine, (first, second, cold, last) = SlotEngine(slots=2), [make_adapter(number) for number in range(4)]
    async with running(engine, clock=tenfold) as residency, using(residency, first):
        async with using(residency, second):
            asked = {}
            for adapter in (cold, first, last):
                asked[adapter.name] = ask(residency, adapter)
                await until_drains(residency, first)
            await asyncio.sleep(0.05)  # the last one has waited for long as well, and needs a slot
        held = await asked[cold.name], await asked[first.name]
        assert not asked[last.name].done()
        for hold in held:
            await hold.__aexit__(None, None, None)
        await leave(asked[last.name])
        assert engine.loads[first.engine_name] == 1


async def test_an_adapter_that_has_left_keeps_its_place_in_the_queue(make_adapter: Make) -> None:
    engine, (hot, cold, last) = SlotEngine(slots=1), [make_adapter(number) for number in range(3)]
    order: list[str] = []
    async with running(engine, clock=tenfold) as residency:
        async with using(residency, hot):
            asked = [ask(residency, cold)]
            await until_drains(residency, hot)
            for adapter in (hot, last):
                asked.append(ask(residency, adapter))
                await a_moment()
        for adapter, task in zip((cold, hot, last), asked, strict=True):
            task.add_done_callback(lambda _, name=adapter.name: order.append(name))  # type: ignore[misc]
        await leave(*asked)
        await a_moment()
    assert order == [cold.name, hot.name, last.name]


async def test_an_adapter_goes_on_when_who_waited_for_its_slot_gives_up(make_adapter: Make) -> None:
    engine, (hot, cold) = SlotEngine(slots=1), [make_adapter(number) for number in range(2)]
    async with running(engine, clock=tenfold) as residency:
        async with using(residency, hot):
            impatient = ask(residency, cold, Patience(None, 15.0))
            await until_drains(residency, hot)
            again = ask(residency, hot)
            with pytest.raises(Overloaded):
                await impatient
            async with asyncio.timeout(2):
                await leave(again)
        await a_moment()
        assert engine.loaded == {hot.engine_name}
        assert engine.loads[cold.engine_name] == 0, "nobody waits for it any more"


async def test_an_adapter_goes_on_when_another_has_to_leave_anyway(make_adapter: Make) -> None:
    engine, (hot, gone, cold) = SlotEngine(slots=2), [make_adapter(number) for number in range(3)]
    async with running(engine, clock=tenfold) as residency, using(residency, hot):
        async with using(residency, gone):
            waiting = ask(residency, cold)
            await until_drains(residency, hot)
            await residency.unload(gone)
            await until_drains(residency, gone)
        await leave(waiting)


async def test_of_those_that_drain_the_longest_turn_ends(make_adapter: Make) -> None:
    engine, adapters = SlotEngine(slots=3), [make_adapter(number) for number in range(5)]
    async with running(engine, clock=tenfold) as residency:
        async with contextlib.AsyncExitStack() as stack:
            for adapter in adapters[:3]:
                await stack.enter_async_context(using(residency, adapter))
            waiting, gives_up = ask(residency, adapters[3]), ask(residency, adapters[4])
            await until_drains(residency, *adapters[:2])
            gives_up.cancel()
            await until_drains(residency, adapters[0])
        await leave(waiting)


async def test_nothing_goes_on_for_requests_that_were_cancelled(make_adapter: Make) -> None:
    engine, (hot, other, cold, last) = SlotEngine(slots=2), [make_adapter(number) for number in range(4)]
    async with running(engine, clock=tenfold) as residency, using(residency, hot):
        async with using(residency, other):
            waiting = ask(residency, cold)
            await until_drains(residency, hot)
            cancelled, behind = ask(residency, hot), ask(residency, last)
            await asyncio.sleep(0.05)
            cancelled.cancel()
        await waiting
        await a_moment()
        assert draining(residency) == [hot], "the last one waits for its slot"
        await leave(waiting)
        await leave(behind)


@pytest.mark.parametrize(("colds", "goes_on"), [(2, True), (3, False)])
async def test_one_free_slot_lets_go_on_what_drains_for_one_and_nobody_else(
    make_adapter: Make, colds: int, goes_on: bool
) -> None:
    engine, adapters = SlotEngine(slots=3), [make_adapter(number) for number in range(3 + colds)]
    hot, one, other, *cold = adapters
    async with running(engine, clock=tenfold) as residency, using(residency, hot):
        holds = [ask(residency, one), ask(residency, other)]
        await asyncio.gather(*holds)
        waiting = [ask(residency, adapter) for adapter in cold]
        await until_drains(residency, hot)
        again = ask(residency, hot)
        await a_moment()
        engine.slow[cold[0].engine_name] = asyncio.Event()
        await leave(holds[0])
        await a_moment()
        await leave(holds[1])
        await asyncio.sleep(0.05)
        assert entry(residency, cold[0]).state is AdapterState.LOADING
        assert again.done() is goes_on
        engine.slow[cold[0].engine_name].set()
        await leave(*waiting, again)


async def test_what_is_pinned_does_not_drain(make_adapter: Make) -> None:
    engine, (kept, other, cold) = SlotEngine(slots=2), [make_adapter(number) for number in range(3)]
    async with running(engine, clock=tenfold) as residency:
        async with using(residency, kept), using(residency, other):
            residency.sync([replace(kept, pinned=True), other, cold])
            waiting = ask(residency, cold)
            await until_drains(residency, other)
            await asyncio.sleep(0.5)
            assert draining(residency) == [other]
            assert not entry(residency, kept).drains_at
        await leave(waiting)


async def test_what_is_pinned_stays(make_adapter: Make) -> None:
    engine, (kept, other, cold) = SlotEngine(slots=2), [make_adapter(number) for number in range(3)]
    async with running(engine, clock=tenfold) as residency:
        async with using(residency, kept), using(residency, other):
            waiting = ask(residency, cold)
            await until_drains(residency, kept)
            residency.sync([replace(kept, pinned=True), other, cold])
            await until_drains(residency, other)
        await leave(waiting)
        assert engine.loaded == {kept.engine_name, cold.engine_name}
        assert engine.loads[kept.engine_name] == 1


async def test_what_is_pinned_as_its_last_request_ends_stays(make_adapter: Make) -> None:
    engine, (kept, other, cold) = SlotEngine(slots=2), [make_adapter(number) for number in range(3)]
    async with running(engine, clock=tenfold) as residency:
        holds = [ask(residency, kept), ask(residency, other)]
        await asyncio.gather(*holds)
        waiting = ask(residency, cold)
        await until_drains(residency, kept)
        residency.sync([replace(kept, pinned=True), other, cold])
        await leave(*holds, waiting)
        assert engine.loads[kept.engine_name] == 1
        assert kept.engine_name in engine.loaded


async def test_an_unload_stands_whatever_the_registry_tells(make_adapter: Make) -> None:
    engine, adapter = SlotEngine(), make_adapter(1)
    async with running(engine) as residency:
        async with using(residency, adapter):
            await residency.unload(adapter)
            residency.sync([adapter])
            await a_moment()
        await a_moment()
        assert not engine.loaded


async def test_an_unload_of_what_drains_and_is_asked_for_frees_its_slot(make_adapter: Make) -> None:
    engine, (hot, other, cold) = SlotEngine(slots=2), [make_adapter(number) for number in range(3)]
    async with running(engine, clock=tenfold) as residency:
        async with using(residency, hot):
            async with using(residency, other):
                waiting = ask(residency, cold)
                await until_drains(residency, hot)
                again = ask(residency, hot)
                await a_moment()
                await residency.unload(hot)
            await waiting
            await a_moment()
            assert not again.done()
        await leave(again, waiting)
        assert engine.loads[hot.engine_name] == 2


async def test_what_was_told_to_leave_is_enough_for_one_who_waits(make_adapter: Make) -> None:
    engine, (gone, other, cold) = SlotEngine(slots=2), [make_adapter(number) for number in range(3)]
    async with running(engine, clock=tenfold) as residency:
        async with using(residency, gone), using(residency, other):
            await asyncio.sleep(0.06)  # the other has had its turn
            await residency.unload(gone)
            waiting = ask(residency, cold)
            await asyncio.sleep(0.6)
            assert draining(residency) == [gone]
        await leave(waiting)


@pytest.mark.parametrize("loading", [True, False])
async def test_what_was_retired_does_not_come_back_after_a_death(make_adapter: Make, loading: bool) -> None:
    engine, adapter = SlotEngine(load_s=0.05), make_adapter(1)
    async with running(engine) as residency:
        asked = ask(residency, adapter)
        if loading:
            await a_moment()
            residency.sync([])
        await asked
        residency.sync([])
        engine.die()
        engine.come_back()
        await asyncio.sleep(0.2)
        assert not engine.loaded
        await leave(asked)

import asyncio
import contextlib
import random
import shutil
import time
from collections.abc import AsyncIterator, Callable

import pytest

from adapters_registry.model import AdapterVersion
from serving.errors import AdapterLoadFailed, EngineTimeout, Overloaded
from serving.residency import AdapterState, Hold, Patience, Residency, StillCold
from tests.serving.residency.conftest import SlotEngine

WAIT = Patience(None, 5.0)
Make = Callable[..., AdapterVersion]


@contextlib.asynccontextmanager
async def running(engine: SlotEngine, clock: Callable[[], float] = time.monotonic) -> AsyncIterator[Residency]:
    residency = Residency(engine, clock=clock)
    residency.start()
    try:
        yield residency
    finally:
        await residency.stop()


@contextlib.asynccontextmanager
async def using(residency: Residency, adapter: AdapterVersion, patience: Patience = WAIT) -> AsyncIterator[Hold]:
    engine = residency.engine
    assert isinstance(engine, SlotEngine)
    async with residency.hold(adapter, patience) as held:
        assert adapter.engine_name in engine.loaded, "held but not resident"
        engine.using[adapter.engine_name] += 1
        try:
            yield held
        finally:
            engine.using[adapter.engine_name] -= 1


async def test_a_hundred_requests_for_one_cold_adapter_cause_one_load(make_adapter: Make) -> None:
    engine, adapter = SlotEngine(), make_adapter(1)
    async with running(engine) as residency:

        async def request() -> bool:
            async with using(residency, adapter) as held:
                return held.was_ready

        warm = await asyncio.gather(*(request() for _ in range(100)))
        assert not any(warm)
        assert engine.loads[adapter.engine_name] == 1
        async with using(residency, adapter) as held:
            assert held.was_ready
            assert held.waited_s == 0


async def test_the_least_recently_used_adapter_leaves(make_adapter: Make) -> None:
    engine = SlotEngine(slots=2)
    first, second, third = (make_adapter(number) for number in range(3))
    async with running(engine, clock=lambda: 0.0) as residency:  # every load costs the same
        for adapter in (first, second, first, third):
            async with using(residency, adapter):
                pass
        assert engine.loaded == {first.engine_name, third.engine_name}


async def test_an_adapter_in_use_is_never_evicted_and_the_next_waits_for_it(make_adapter: Make) -> None:
    engine, busy, cold = SlotEngine(slots=1), make_adapter(1), make_adapter(2)
    async with running(engine) as residency:
        async with using(residency, busy):
            waiting = asyncio.create_task(residency.hold(cold, WAIT).__aenter__())
            await asyncio.sleep(0.1)
            assert not waiting.done()
            assert busy.engine_name in engine.loaded
        held = await waiting
        assert engine.loaded == {cold.engine_name}
        await held.__aexit__(None, None, None)


async def test_a_busy_adapter_cannot_starve_a_cold_one(make_adapter: Make) -> None:
    engine, hot, cold = SlotEngine(slots=1), make_adapter(1), make_adapter(2)
    async with running(engine) as residency:
        stop = asyncio.Event()

        async def keep_busy() -> None:
            while not stop.is_set():
                async with using(residency, hot):
                    await asyncio.sleep(0.01)

        clients = [asyncio.create_task(keep_busy()) for _ in range(4)]
        await asyncio.sleep(0.05)
        async with asyncio.timeout(2), using(residency, cold):
            pass
        stop.set()
        await asyncio.gather(*clients)


async def test_a_wait_past_the_limit_goes_to_the_base_while_the_load_goes_on(make_adapter: Make) -> None:
    engine, adapter = SlotEngine(load_s=0.1), make_adapter(1)
    async with running(engine) as residency:
        with pytest.raises(StillCold):
            async with residency.hold(adapter, Patience(0.02, 5)):
                pass
        await asyncio.sleep(0.2)
        async with using(residency, adapter) as held:
            assert held.was_ready


async def test_waiting_has_an_end(make_adapter: Make) -> None:
    engine, busy, cold = SlotEngine(slots=1), make_adapter(1), make_adapter(2)
    async with running(engine) as residency, using(residency, busy):
        with pytest.raises(Overloaded) as refused:
            async with residency.hold(cold, Patience(None, 0.05)):
                pass
        assert refused.value.code == "adapter_wait_timeout"


async def test_a_request_that_is_cancelled_while_it_waits_leaves_nothing_behind(make_adapter: Make) -> None:
    engine, busy, cold = SlotEngine(slots=1), make_adapter(1), make_adapter(2)
    async with running(engine) as residency:
        async with using(residency, busy):
            waiting = asyncio.create_task(residency.hold(cold, WAIT).__aenter__())
            await asyncio.sleep(0.02)
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await waiting
        entry = residency.find(cold.engine_name)
        assert entry is not None
        assert (entry.waiters, entry.in_flight) == (0, 0)
        async with using(residency, busy):
            pass


async def test_pinned_adapters_stay_and_a_full_house_of_pins_is_said(make_adapter: Make) -> None:
    engine, pinned, other = SlotEngine(slots=1), make_adapter(1, pinned=True), make_adapter(2)
    async with running(engine) as residency:
        residency.sync([pinned, other])
        async with using(residency, pinned):
            pass
        with pytest.raises(AdapterLoadFailed, match="pinned"):
            async with residency.hold(other, WAIT):
                pass
        assert engine.loaded == {pinned.engine_name}


async def test_a_refused_adapter_fails_its_requests_and_no_others(make_adapter: Make) -> None:
    engine, bad, good = SlotEngine(), make_adapter(1), make_adapter(2)
    engine.refuse.add(bad.engine_name)
    async with running(engine) as residency:
        for _ in range(2):  # the second time from memory, without another load
            with pytest.raises(AdapterLoadFailed):
                async with residency.hold(bad, WAIT):
                    pass
        async with using(residency, good):
            pass


async def test_vanished_files_are_noticed_before_the_engine_is_asked(make_adapter: Make) -> None:
    engine, adapter = SlotEngine(), make_adapter(1)
    shutil.rmtree(adapter.path)
    async with running(engine) as residency:
        with pytest.raises(AdapterLoadFailed, match="cannot be read"):
            async with residency.hold(adapter, WAIT):
                pass
    assert not engine.loads


async def test_after_the_engine_died_the_same_adapters_come_back_by_themselves(make_adapter: Make) -> None:
    engine, one, two = SlotEngine(slots=2), make_adapter(1), make_adapter(2)
    async with running(engine) as residency:
        async with using(residency, one), using(residency, two):
            engine.die()
        # The two requests above ended after the death: their release must not count against the new generation.
        waiting = asyncio.create_task(residency.hold(one, WAIT).__aenter__())
        await asyncio.sleep(0.05)
        assert not waiting.done()
        engine.come_back()
        held = await waiting
        await asyncio.sleep(0.1)
        assert engine.loaded == {one.engine_name, two.engine_name}
        await held.__aexit__(None, None, None)
        for adapter in (one, two):
            entry = residency.find(adapter.engine_name)
            assert entry is not None
            assert (entry.state, entry.in_flight) == (AdapterState.READY, 0)


async def test_death_in_the_middle_of_a_load_only_delays_it(make_adapter: Make) -> None:
    engine, adapter = SlotEngine(load_s=0.05), make_adapter(1)
    async with running(engine) as residency:
        waiting = asyncio.create_task(residency.hold(adapter, WAIT).__aenter__())
        await asyncio.sleep(0.02)
        engine.die()
        await asyncio.sleep(0.1)
        engine.come_back()
        held = await waiting
        assert engine.loaded == {adapter.engine_name}
        await held.__aexit__(None, None, None)


async def test_prefetch_fills_free_slots_and_evicts_nobody(make_adapter: Make) -> None:
    engine, adapters = SlotEngine(slots=2), [make_adapter(number) for number in range(5)]
    async with running(engine) as residency, using(residency, adapters[4]):
        residency.prefetch(adapters[:4])
        await asyncio.sleep(0.1)
        assert engine.loaded == {adapters[4].engine_name, adapters[0].engine_name}


async def test_what_the_registry_no_longer_serves_drains(make_adapter: Make) -> None:
    engine, adapter = SlotEngine(), make_adapter(1)
    async with running(engine) as residency:
        residency.sync([adapter])
        async with using(residency, adapter):
            residency.sync([])
            await asyncio.sleep(0.05)
            assert adapter.engine_name in engine.loaded, "drained while in use"
        await asyncio.sleep(0.05)
        assert not engine.loaded
        residency.sync([])
        assert residency.find(adapter.engine_name) is None


async def test_an_adapter_retired_while_it_loads_serves_who_waits_and_then_leaves(make_adapter: Make) -> None:
    engine, adapter = SlotEngine(load_s=0.05), make_adapter(1)
    async with running(engine) as residency:
        waiting = asyncio.create_task(residency.hold(adapter, WAIT).__aenter__())
        await asyncio.sleep(0.02)
        residency.sync([])
        held = await waiting
        assert adapter.engine_name in engine.loaded
        await held.__aexit__(None, None, None)
        await asyncio.sleep(0.05)
        assert not engine.loaded


async def test_an_unloaded_adapter_that_is_asked_for_again_comes_back(make_adapter: Make) -> None:
    engine, adapter = SlotEngine(), make_adapter(1)
    async with running(engine) as residency:
        async with using(residency, adapter):
            await residency.unload(adapter)
            again = asyncio.create_task(residency.hold(adapter, WAIT).__aenter__())
            await asyncio.sleep(0.03)
            assert not again.done()
        held = await again
        assert engine.loads[adapter.engine_name] == 2
        await held.__aexit__(None, None, None)


async def test_stopping_ends_every_wait(make_adapter: Make) -> None:
    engine, busy, cold = SlotEngine(slots=1), make_adapter(1), make_adapter(2)
    async with running(engine) as residency, using(residency, busy):
        waiting = asyncio.create_task(residency.hold(cold, WAIT).__aenter__())
        await asyncio.sleep(0.02)
        await residency.stop()
        with pytest.raises(Exception, match="shutting down"):
            await waiting


@pytest.mark.parametrize("seed", range(8))
async def test_random_traffic_with_deaths_and_churn_keeps_every_promise(make_adapter: Make, seed: int) -> None:
    """The engine itself asserts: never more adapters than slots, nor more loads than it takes; none evicted in use."""
    chance = random.Random(seed)
    engine, adapters = SlotEngine(slots=3, load_s=0.001), [make_adapter(number) for number in range(12)]
    if seed % 2:
        engine.staging, engine.loads_at_once = True, 3
    answered = 0
    fast = 100 if seed % 4 > 1 else 1  # so that adapters take turns within the half second
    async with running(engine, clock=lambda: fast * time.monotonic()) as residency:

        async def request() -> None:
            nonlocal answered
            await asyncio.sleep(chance.random() * 0.5)
            adapter = adapters[min(11, int(chance.paretovariate(1)) - 1)]
            patience = Patience(chance.choice([None, 0.0, 0.01]), 10)
            try:
                if chance.random() < 0.1:
                    async with asyncio.timeout(0.002), residency.hold(adapter, patience):
                        await asyncio.sleep(0.001)
                else:
                    async with residency.hold(adapter, patience):
                        generation = engine.status.generation
                        engine.using[adapter.engine_name] += 1
                        await asyncio.sleep(chance.random() * 0.01)
                        if generation == engine.status.generation and engine.using[adapter.engine_name]:
                            engine.using[adapter.engine_name] -= 1
                answered += 1
            except (StillCold, TimeoutError):
                answered += 1

        async def disturb() -> None:
            for _ in range(5):
                await asyncio.sleep(0.08)
                engine.die()
                await asyncio.sleep(0.01)
                engine.come_back()
                residency.sync(chance.sample(adapters, 9))

        await asyncio.gather(disturb(), *(request() for _ in range(600)))
        await asyncio.sleep(0.05)
        assert not engine.broken
        assert answered == 600
        assert all(entry.in_flight == 0 and entry.waiters == 0 for entry in residency.entries())
        assert {entry.adapter.engine_name for entry in residency.slots.values()} == engine.loaded


async def test_an_unload_that_the_engine_does_not_answer_stops_nobody(
    make_adapter: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, first, second = SlotEngine(slots=1), make_adapter(1), make_adapter(2)
    unload = engine.unload

    async def silent(engine_name: str, engine_id: int) -> None:
        await unload(engine_name, engine_id)
        raise EngineTimeout("the engine has not answered")

    monkeypatch.setattr(engine, "unload", silent)
    async with running(engine) as residency:
        for adapter in (first, second, first):
            async with using(residency, adapter):
                pass
        await residency.unload(first)
        async with using(residency, second):
            pass


async def test_a_remembered_refusal_does_not_gather_the_requests_that_it_met(make_adapter: Make) -> None:
    engine, adapter = SlotEngine(), make_adapter(1)
    engine.refuse.add(adapter.engine_name)
    async with running(engine) as residency:
        depths = []
        for _ in range(4):
            with pytest.raises(AdapterLoadFailed) as refused:
                async with using(residency, adapter):
                    pass
            depths.append(len(refused.traceback))
    assert depths[1] == depths[3]

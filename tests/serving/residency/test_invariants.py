"""Random traffic and everything that may happen to adapters meanwhile, on a clock that jumps."""

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

from adapters_registry.model import AdapterVersion
from bench.residency_model import on_clock
from serving.engine.base import EngineState
from serving.errors import AdapterLoadFailed, Overloaded
from serving.residency import AdapterState, Entry, Patience, Residency, StillCold
from tests.serving.residency.conftest import SlotEngine

Make = Callable[..., AdapterVersion]
SECONDS = 20.0


class Scenario:
    """An engine, its adapters, those who ask for them and those who change them, drawn from one seed."""

    def __init__(self, make_adapter: Make, seed: int) -> None:
        self.chance = chance = random.Random(seed)
        slots, staging = chance.choice([1, 2, 3, 4]), chance.random() < 0.5
        loads_at_once = chance.choice([1, 2, 3]) if staging else 1
        self.engine = SlotEngine(
            slots, chance.choice([0, 0.01, 0.3, 1.0]), staging=staging, loads_at_once=loads_at_once
        )
        self.adapters = [make_adapter(number) for number in range(slots + chance.choice([1, 2, 6]))]
        self.engine.refuse = {adapter.engine_name for adapter in self.adapters if chance.random() < 0.05}
        self.residency = Residency(self.engine, clock=asyncio.get_running_loop().time)
        self._deadly = chance.random() < 0.5

    async def run(self) -> None:
        self.residency.start()
        loop = asyncio.get_running_loop()
        disturbing, watching = loop.create_task(self._disturb()), loop.create_task(self._watch())
        rate = self.chance.choice([1, 5, 20])
        asking = [loop.create_task(self._request()) for _ in range(int(SECONDS * rate))]
        await asyncio.sleep(SECONDS)
        assert not disturbing.done(), disturbing.exception()
        disturbing.cancel()
        if self.engine.status.state is not EngineState.READY:
            self.engine.come_back()
        self.residency.sync(self.adapters)
        async with asyncio.timeout(600):
            await asyncio.gather(*asking)
        await asyncio.sleep(30)
        assert not watching.done(), watching.exception()
        watching.cancel()
        assert not self.engine.broken
        assert self.engine.loaded == self._in_slots()
        assert self.residency.waiting == 0
        for entry in self.residency.entries():
            assert entry.in_flight == entry.waiters == 0
            assert entry.ready is None
            assert entry.state in (AdapterState.READY, AdapterState.ABSENT)
        await self.residency.stop()

    def _in_slots(self) -> set[str]:
        return {entry.adapter.engine_name for entry in self.residency.slots.values()}

    async def _request(self) -> None:
        chance, engine = self.chance, self.engine
        await asyncio.sleep(chance.random() * SECONDS)
        adapter = chance.choice(self.adapters[: chance.choice([2, len(self.adapters)])])
        patience = Patience(chance.choice([None, None, 0.0, 0.1, 1.0]), chance.choice([0.3, 2, 1000, 1000]))
        answer_s = chance.choice([0, 0.01, 0.3, 0.3, 1, 10])
        gives_up = asyncio.timeout(chance.choice([0.05, 0.5, 2]) if chance.random() < 0.2 else None)
        with contextlib.suppress(StillCold, TimeoutError, Overloaded, AdapterLoadFailed):
            async with gives_up, self.residency.hold(adapter, patience):
                assert adapter.engine_name in engine.loaded, "held but not resident"
                generation = engine.status.generation
                engine.using[adapter.engine_name] += 1
                try:
                    await asyncio.sleep(answer_s)
                finally:
                    if generation == engine.status.generation and engine.using[adapter.engine_name]:
                        engine.using[adapter.engine_name] -= 1

    async def _disturb(self) -> None:
        chance, adapters = self.chance, self.adapters
        while True:
            await asyncio.sleep(chance.expovariate(2))
            what = chance.random()
            if what < 0.05 and self._deadly:
                self.engine.die()
                await asyncio.sleep(chance.choice([0, 0.2]))
                self.engine.come_back()
            elif what < 0.4:
                await self.residency.unload(chance.choice(adapters))
            elif what < 0.7:
                served = chance.sample(adapters, len(adapters) - chance.choice([0, 1, 2]) or 1)
                self.residency.sync([replace(adapter, pinned=chance.random() < 0.15) for adapter in served])
            elif what < 0.8:
                self.residency.prefetch(chance.sample(adapters, 2))

    async def _watch(self) -> None:
        """Look at all of it often. The engine itself sees: never too many adapters or loads, none evicted in use."""
        while True:
            await asyncio.sleep(0.007)
            queue = list(self.residency._loader.queue)
            assert len(queue) == len(set(queue))
            for entry in self.residency.entries():
                wrong = [what for what, holds in self._promises(entry, entry in queue) if not holds]
                assert not wrong, (entry, wrong)

    def _promises(self, entry: Entry, queued: bool) -> Iterator[tuple[str, bool]]:
        state, in_slot = entry.state, self.residency.slots.get(entry.adapter.engine_name) is entry
        yield "only what is ready or drains is in a slot", not in_slot or state in {"ready", "draining"}
        yield "what is ready is in a slot, and nobody waits for it", state != "ready" or (in_slot and not entry.ready)
        yield "what is ready is wanted no more", state != "ready" or not entry.wanted
        yield "what is queued is waited for", not queued or entry.ready is not None
        yield "what is queued in a slot may go on", not (queued and in_slot) or entry.yielding
        yield "what may go on and is waited for is queued", not (in_slot and entry.yielding and entry.ready) or queued
        yield "only what is in a slot is in use", entry.in_flight == 0 or (entry.in_flight > 0 and in_slot)


@pytest.mark.parametrize("seed", range(60))
def test_whatever_happens_no_promise_is_broken_and_everybody_is_answered(make_adapter: Make, seed: int) -> None:
    async def scenario() -> None:
        await Scenario(make_adapter, seed).run()

    on_clock(scenario)

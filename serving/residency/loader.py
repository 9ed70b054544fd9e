"""Bringing what is asked for into the slots of one engine: first come first served, never evicting what is in use.

With all slots busy, the adapter with the longest turn drains. If it is asked for meanwhile it waits like any other, and
goes on where it is if it still drains when it is first in the queue, or when nobody needs its slot any more.
Slots are given away one at a time, in the order of asking; an engine that stages then fills several of them at once, so
that an adapter in host memory need not wait for one that is read from disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable

from serving.engine.base import Engine, EngineState
from serving.errors import AdapterLoadFailed, EngineUnavailable, ServingError
from serving.residency.ahead import Ahead
from serving.residency.slots import AdapterState, Entry, SlotCache

log = logging.getLogger(__name__)

FAILURE_COOLDOWN_S = 5.0
"""A refused adapter is not tried again sooner."""
DRAIN_AFTER_S = 0.25
"""A load that waits this long makes a busy adapter drain."""


class Loader:
    """The queue of loads of one engine and its slots. `run` is to be kept running; `changed` tells it to look again.

    `on_load` and `on_stage` are those of `Residency`; `on_idle()` is called when nobody waits.
    """

    def __init__(
        self,
        engine: Engine,
        ahead: Ahead,
        *,
        on_load: Callable[[float, str], None],
        on_stage: Callable[[float], None],
        on_idle: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._engine = engine
        self._ahead = ahead
        self._on_load = on_load
        self._on_stage = on_stage
        self._on_idle = on_idle
        self._clock = clock
        self._cache: SlotCache | None = None
        self._load_s = 0.05  # first guess of a load's duration; then a moving average
        self._loads: dict[Entry, asyncio.Task[None]] = {}
        self.queue: deque[Entry] = deque()
        """those that have no slot yet, and those that drain and are asked for again"""
        self.changed = asyncio.Event()
        self.epoch = 0
        """counts losses of all adapters; what was taken in an earlier epoch is not given back"""
        self.evictions = 0
        self.longest_wait_s = 0.0
        """the longest, from asking for an adapter to ready"""

    @property
    def slots(self) -> SlotCache:
        """The slots; made late because a remote engine tells their number only when it is reached."""
        if self._cache is None or (self._cache.maxsize != self._engine.slots and not self._cache):
            self._cache = SlotCache(self._engine.slots)
        return self._cache

    @property
    def waiting(self) -> int:
        """Loads that are asked for and not finished."""
        return len(self._cold) + len(self._loads)

    @property
    def free(self) -> int:
        """Slots that further loads could have without evicting anything."""
        return self._engine.slots - len(self.slots) - self.waiting

    def ask(self, entry: Entry) -> asyncio.Future[None]:
        """The future of `entry`, which is not ready; it is queued unless a load of it is under way or it is leaving."""
        if entry.ready is None:
            entry.ready = asyncio.get_running_loop().create_future()
            # Nobody may be waiting when it fails: a prefetch, or requests that all went to the base.
            entry.ready.add_done_callback(lambda future: future.cancelled() or future.exception())
            if entry.state is AdapterState.ABSENT or entry.yielding:
                self._enqueue(entry)
                self.changed.set()
        return entry.ready

    def expected_wait_s(self, entry: Entry) -> float:
        """How long the loads before that of `entry` are likely to take; 0 for one that drains, which may go on."""
        cold = self._cold
        ahead = len(self._loads) + cold.index(entry) if entry in cold else 0
        return ahead * self._load_s / self._engine.loads_at_once

    def resolve(self, entry: Entry, error: Exception | None = None) -> None:
        """Tell those who wait for `entry` that it is ready, or why not."""
        ready, entry.ready = entry.ready, None
        if ready is None or ready.done():
            return
        if error is None:
            ready.set_result(None)
        else:
            ready.set_exception(error)

    def leave(self, entry: Entry) -> None:
        """Let `entry` leave: now, or once the load under way has served those who wait for it."""
        if entry.yielding and entry in self.queue:
            self.queue.remove(entry)  # it is asked for again when it has left
        entry.leaving = entry.state is not AdapterState.ABSENT
        if entry.state is AdapterState.READY:
            entry.drain(self._clock())
        self.changed.set()

    def forget(self) -> list[Entry]:
        """The engine died: nothing is resident, requests in flight are over.

        Returns what was resident and not asked to leave, the best first.
        """
        lost = sorted(self.slots.values(), key=lambda entry: (entry.pinned, entry.priority), reverse=True)
        staying = [entry for entry in lost if not entry.leaving]
        self.epoch += 1
        self._cache = None
        for entry in lost:
            entry.in_flight = 0
            self._left(entry)
        return staying

    async def run(self) -> None:
        """Load what is asked for, for ever."""
        while True:
            await self._evict_drained()
            self._take_turns()
            if self._engine.staging and not self.queue and self._engine.status.state is EngineState.READY:
                self._on_idle()
            if self._may_begin():
                await self._begin(self.queue[0])
                continue
            self.changed.clear()
            if not self.slots.drained() and not self._may_begin():
                self._ahead.look(self._cold)
                await self.changed.wait()

    async def stop(self) -> None:
        """End the loads under way."""
        for load in self._loads.values():
            load.cancel()
        await asyncio.gather(*self._loads.values(), return_exceptions=True)
        self._loads.clear()  # one that had not begun has not taken itself out

    def _may_begin(self) -> bool:
        return (
            bool(self.queue)
            and self._engine.status.state is EngineState.READY
            and len(self._loads) < self._engine.loads_at_once
        )

    def _enqueue(self, entry: Entry) -> None:
        if not entry.yielding:
            entry.state = AdapterState.STAGING
        entry.asked_at = self._clock()
        entry.ahead = False
        self.queue.append(entry)

    async def _begin(self, entry: Entry) -> None:
        """Give the first of the queue a slot and begin to load it, unless nobody wants it any more."""
        if not entry.asked_for:
            self.queue.remove(entry)
            entry.state = AdapterState.ABSENT
            self.resolve(entry, EngineUnavailable("nobody waits for this load any more"))
            return
        entry.state = AdapterState.STAGING
        try:
            if not self._engine.staging:
                began = self._clock()
                await self._engine.stage(entry.adapter)
                self._on_stage(self._clock() - began)
            entry.state = AdapterState.STAGED
            if not await self._free_slot(entry):
                return  # `run` comes back to it, and drops it
        except ServingError as error:
            self.queue.remove(entry)
            await self._not_loaded(entry, error)
            return
        self.queue.remove(entry)
        entry.state = AdapterState.LOADING
        self._loads[entry] = asyncio.create_task(self._load(entry), name=f"load {entry.adapter.engine_name}")

    async def _load(self, entry: Entry) -> None:
        """Fill the slot that is kept for `entry`."""
        try:
            await self._fill(entry)
        except ServingError as error:
            await self._not_loaded(entry, error)
        except Exception as error:  # a defect: those who wait are told, and the loads behind go on
            log.exception("loading %s", entry.adapter.engine_name)
            self._fail(entry, AdapterLoadFailed(f"adapter {entry.adapter.engine_name} cannot be loaded: {error}"))
        finally:
            del self._loads[entry]
            self.changed.set()

    async def _not_loaded(self, entry: Entry, error: ServingError) -> None:
        if not isinstance(error, EngineUnavailable):
            self._fail(entry, error)
            return
        # The engine's own watcher brings it back; the entry has its old place in the queue again.
        log.warning("loading %s waits for engine %s: %s", entry.adapter.engine_name, self._engine.name, error)
        entry.state = AdapterState.STAGING
        await asyncio.sleep(0.05)
        place = sum(other.asked_at <= entry.asked_at for other in self.queue)
        self.queue.insert(place, entry)

    async def _fill(self, entry: Entry) -> None:
        epoch, began = self.epoch, self._clock()
        try:
            await self._engine.load(entry.adapter)
        except EngineUnavailable:
            raise
        except Exception:
            self._on_load(self._clock() - began, "failed")
            raise
        if epoch != self.epoch:
            raise EngineUnavailable("the engine died and came back meanwhile")
        entry.load_s = self._clock() - began
        entry.loads += 1
        self._load_s += 0.2 * (entry.load_s - self._load_s)
        self._on_load(entry.load_s, "ok")
        entry.failure = None
        self.slots[entry.adapter.engine_name] = entry
        self.slots.touch(entry)
        self._serve(entry)

    def _serve(self, entry: Entry) -> None:
        """Let who waits for `entry`, which is in a slot, have it: a turn of it begins."""
        if entry.ready is not None:
            self.longest_wait_s = max(self.longest_wait_s, self._clock() - entry.asked_at)
        entry.wanted = False
        entry.state = AdapterState.READY
        entry.turn_at = self._clock()
        self.resolve(entry)
        if entry.leaving and entry.waiters == 0:
            self.leave(entry)

    def _take_turns(self) -> None:
        """Let go on what drains and is first in the queue or need not drain; have one drain for who waited for long."""
        for entry in [entry for entry in self.queue if entry.yielding and not entry.asked_for]:
            self.queue.remove(entry)
            self.resolve(entry, EngineUnavailable("nobody waits for it any more"))
        while self.queue and self.queue[0].adapter.engine_name in self.slots:
            self._serve(self.queue.popleft())
        now = self._clock()
        due = sum(entry.asked_for and now - entry.asked_at >= DRAIN_AFTER_S for entry in self._cold)
        for entry in self.slots.needless(max(0, due - self._room)):
            if entry in self.queue:
                self.queue.remove(entry)
            self._serve(entry)
        if self._room <= 0:  # else it is loading that takes long
            self.slots.drain(due, now)

    async def _free_slot(self, entry: Entry) -> bool:
        """Return when a slot is free, evicting if need be; False if nobody wants it for `entry` any more.

        A slot that is being filled is not free.
        """
        if self._engine.slots == 0:
            raise AdapterLoadFailed(f"engine {self._engine.name} takes no adapters")
        while self._full:
            if not entry.asked_for:
                return False
            if not self._loads and all(resident.pinned for resident in self.slots.values()):
                raise AdapterLoadFailed(f"all {self._engine.slots} slots of engine {self._engine.name} are pinned")
            await self._evict_drained()
            if not self._full:
                break
            victim = self.slots.lowest()
            if victim is not None:
                self.slots.popitem()
                await self._unload(victim)
                continue
            self._take_turns()
            self._ahead.look(self._cold)
            self.changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_AFTER_S):
                    await self.changed.wait()
        return True

    @property
    def _cold(self) -> list[Entry]:
        """Those of the queue that have no slot yet."""
        return [entry for entry in self.queue if entry.adapter.engine_name not in self.slots]

    @property
    def _full(self) -> bool:
        return len(self.slots) + len(self._loads) >= self._engine.slots

    @property
    def _room(self) -> int:
        """Slots that are free, or would be by evicting what nobody uses."""
        free = self._engine.slots - len(self.slots) - len(self._loads)
        return free + sum(entry.evictable for entry in self.slots.values())

    async def _evict_drained(self) -> None:
        while drained := self.slots.drained():
            self.slots.pop(drained[0].adapter.engine_name, None)
            await self._unload(drained[0])

    async def _unload(self, entry: Entry) -> None:
        """Free the slot of an entry that has left the cache; queue it again if requests came for it meanwhile."""
        entry.state = AdapterState.DRAINING
        epoch = self.epoch
        self.evictions += 1
        try:
            await self._engine.unload(entry.adapter.engine_name, entry.adapter.engine_id)
        except ServingError as error:
            log.info("unloading %s: %s", entry.adapter.engine_name, error)
        if epoch != self.epoch and entry.state is not AdapterState.DRAINING:
            return
        self._left(entry)

    def _left(self, entry: Entry) -> None:
        """`entry` is in no slot any more; it is queued if it is asked for."""
        entry.leaving = False
        entry.state = AdapterState.ABSENT
        if entry in self.queue:
            entry.state = AdapterState.STAGING
        elif entry.ready is not None:
            self._enqueue(entry)

    def _fail(self, entry: Entry, error: ServingError) -> None:
        log.warning("adapter %s: %s", entry.adapter.engine_name, error.message)
        entry.state = AdapterState.ABSENT
        entry.wanted = False
        entry.failure = error
        entry.failed_until = self._clock() + FAILURE_COOLDOWN_S
        self.resolve(entry, error)

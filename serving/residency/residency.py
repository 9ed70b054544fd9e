"""Loading on demand for one engine: single flight, first come first served, never evicting an adapter in use."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable

from adapters_registry.model import AdapterVersion
from serving.engine.base import Engine, EngineState, EngineStatus
from serving.errors import AdapterLoadFailed, EngineUnavailable, Overloaded, ServingError
from serving.residency.ahead import Ahead
from serving.residency.demand import Demand
from serving.residency.hold import Hold, Patience, StillCold
from serving.residency.slots import AdapterState, Entry, SlotCache
from serving.tasks import keep_running

log = logging.getLogger(__name__)

FAILURE_COOLDOWN_S = 5.0
"""A refused adapter is not tried again sooner."""
DRAIN_AFTER_S = 0.25
"""A load that waits this long for a slot makes the least valuable busy adapter drain."""


class Residency:
    """The adapters of one engine. All methods belong to the engine's event loop.

    `on_load(seconds, outcome)` is called after every load with outcome `ok` or `failed`, `on_stage(seconds)` after an
    adapter's files were read where the engine does not stage; `clock` counts seconds.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        on_load: Callable[[float, str], None] = lambda seconds, outcome: None,
        on_stage: Callable[[float], None] = lambda seconds: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self._on_load = on_load
        self._on_stage = on_stage
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._cache: SlotCache | None = None
        self._queue: deque[Entry] = deque()
        self._changed = asyncio.Event()
        self._generation = engine.status.generation
        self._epoch = 0  # counts losses of all adapters; what was taken in an earlier epoch is not given back
        self._restore: list[Entry] = []
        self._load_s = 0.05  # first guess of a load's duration; then a moving average
        self._loader: asyncio.Task[None] | None = None
        self.evictions = 0
        self.longest_wait_s = 0.0
        """of all loads that ended well, from asking to ready"""
        self._demand = Demand(clock)
        self._ahead = Ahead(engine)
        engine.on_change(self._engine_changed)

    @property
    def slots(self) -> SlotCache:
        """The slots; made late because a remote engine tells their number only when it is reached."""
        if self._cache is None or (self._cache.maxsize != self.engine.slots and not self._cache):
            self._cache = SlotCache(self.engine.slots)
        return self._cache

    def start(self) -> None:
        """Begin to load what is asked for."""
        if self._loader is None:
            self._loader = keep_running(f"residency {self.engine.name}", self._run)

    async def stop(self) -> None:
        """End loading; requests that wait get EngineUnavailable."""
        if self._loader is not None:
            self._loader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loader
            self._loader = None
        self._ahead.stop()
        for entry in self._entries.values():
            self._resolve(entry, EngineUnavailable("the server is shutting down"))

    # -- requests ----------------------------------------------------------------------------------------------------

    def hold(self, adapter: AdapterVersion, patience: Patience) -> Hold:
        """A context in which `adapter` is resident.

        Entering raises StillCold (go to the base), Overloaded (waited `give_up_after_s`), AdapterLoadFailed or
        EngineUnavailable.
        """
        return Hold(self, self._entry(adapter), patience)

    def take(self, entry: Entry) -> int:
        """Count one request in; returns the epoch to hand back to `release`."""
        entry.in_flight += 1
        entry.last_used = self._clock()
        self._demand.note(entry.adapter.engine_name)
        self.slots.touch(entry)
        return self._epoch

    def release(self, entry: Entry, epoch: int) -> None:
        """Count one request out, unless the engine died since it came in."""
        if epoch != self._epoch:
            return
        entry.in_flight -= 1
        if entry.in_flight == 0:
            if entry.leaving:
                self._drain(entry)
            self._changed.set()

    async def await_ready(self, entry: Entry, patience: Patience) -> None:
        """Return when `entry` is ready, as one of the requests that wait for its single load."""
        if entry.failure is not None and self._clock() < entry.failed_until:
            # Raised again as it is, one error would gather the frames, and so the bodies, of every request refused.
            raise entry.failure.with_traceback(None)
        fallback = patience.fallback_after_s
        self._ask(entry)
        if fallback is not None and self._expected_wait_s(entry) > fallback:
            entry.wanted = True
            raise StillCold
        deadline = self._clock() + min(patience.give_up_after_s, fallback if fallback is not None else float("inf"))
        entry.waiters += 1
        try:
            while entry.state is not AdapterState.READY:
                async with asyncio.timeout(max(0.0, deadline - self._clock())):
                    await asyncio.shield(self._ask(entry))
        except TimeoutError:
            if fallback is not None and fallback <= patience.give_up_after_s:
                entry.wanted = True
                raise StillCold from None
            raise Overloaded(
                f"adapter {entry.adapter.engine_name} did not become ready within {patience.give_up_after_s:g} s",
                code="adapter_wait_timeout",
            ) from None
        finally:
            entry.waiters -= 1
            self._changed.set()

    # -- operators and prefetch --------------------------------------------------------------------------------------

    def prefetch(self, adapters: Iterable[AdapterVersion]) -> None:
        """Load `adapters` into free slots, without evicting anything and without waiting; bring the others near."""
        others = []
        for adapter in adapters:
            entry = self._entry(adapter)
            if entry.state is not AdapterState.ABSENT:
                continue
            if self._has_room:
                entry.wanted = True
                self._ask(entry)
            else:
                others.append(adapter)
        self._ahead.bring_near(others)

    def prepare(self, adapters: Iterable[AdapterVersion]) -> None:
        """Let the engine do for new `adapters` what can be done before anybody asks for them."""
        self._ahead.prepare(adapters)

    def sync(self, adapters: Iterable[AdapterVersion]) -> None:
        """Adopt the registry's view: pins follow it, and what it no longer serves drains."""
        served = {adapter.engine_name: adapter for adapter in adapters}
        for name, entry in list(self._entries.items()):
            entry.pinned = name in served and served[name].pinned
            if name not in served:
                self._drain(entry)
            else:
                entry.leaving = False
        for adapter in served.values():
            if adapter.pinned:
                entry = self._entry(adapter)
                entry.pinned = True
                if entry.state is not AdapterState.READY:
                    entry.wanted = True
                    self._ask(entry)
        self._changed.set()

    async def unload(self, adapter: AdapterVersion) -> None:
        """Drain `adapter` and free its slot; returns at once, the slot frees when its last request ends."""
        entry = self._entries.get(adapter.engine_name)
        if entry is not None:
            self._drain(entry)

    def find(self, engine_name: str) -> Entry | None:
        """What is known of one adapter here."""
        return self._entries.get(engine_name)

    def entries(self) -> list[Entry]:
        """Everything known, for listings and metrics."""
        return list(self._entries.values())

    @property
    def waiting(self) -> int:
        """Loads that are asked for and not finished."""
        return len(self._queue)

    # -- inside ------------------------------------------------------------------------------------------------------

    @property
    def _has_room(self) -> bool:
        """Whether a further load would evict nothing."""
        return len(self.slots) + len(self._queue) < self.engine.slots

    def _refill(self) -> None:
        """Give a slot that nobody waits for to what is most in demand."""
        known = (self._entries.get(name) for name in self._demand.ranked())
        self.prefetch(
            itertools.islice(
                (
                    entry.adapter
                    for entry in known
                    if entry and entry.state is AdapterState.ABSENT and self._clock() >= entry.failed_until
                ),
                max(0, self.engine.slots - len(self.slots) - len(self._queue)),
            )
        )

    def _entry(self, adapter: AdapterVersion) -> Entry:
        entry = self._entries.get(adapter.engine_name)
        if entry is None:
            entry = self._entries[adapter.engine_name] = Entry(adapter, pinned=adapter.pinned)
        return entry

    def _ask(self, entry: Entry) -> asyncio.Future[None]:
        """The future of the load of `entry`, which is not ready; queued if no load is under way."""
        if entry.ready is None:
            entry.ready = asyncio.get_running_loop().create_future()
            # Nobody may be waiting when it fails: a prefetch, or requests that all went to the base.
            entry.ready.add_done_callback(lambda future: future.cancelled() or future.exception())
            if entry.state is AdapterState.ABSENT:
                self._enqueue(entry)
                self._changed.set()
        return entry.ready

    def _enqueue(self, entry: Entry) -> None:
        entry.state = AdapterState.STAGING
        entry.asked_at = self._clock()
        entry.ahead = False
        self._queue.append(entry)
        self._ahead.look(self._queue)

    def _expected_wait_s(self, entry: Entry) -> float:
        ahead = self._queue.index(entry) if entry in self._queue else 0
        return ahead * self._load_s

    def _resolve(self, entry: Entry, error: Exception | None = None) -> None:
        ready, entry.ready = entry.ready, None
        if ready is None or ready.done():
            return
        if error is None:
            ready.set_result(None)
        else:
            ready.set_exception(error)

    def _drain(self, entry: Entry) -> None:
        """Let `entry` leave: now, or once the load under way has served those who wait for it."""
        self._demand.forget(entry.adapter.engine_name)
        entry.leaving = entry.state in (AdapterState.STAGING, AdapterState.STAGED, AdapterState.LOADING)
        if entry.state is AdapterState.READY:
            entry.state = AdapterState.DRAINING
        elif entry.state is AdapterState.ABSENT and entry.adapter.engine_name in self._entries:
            del self._entries[entry.adapter.engine_name]
        self._changed.set()

    def _engine_changed(self, status: EngineStatus) -> None:
        if status.generation != self._generation or status.state in (EngineState.RESTARTING, EngineState.FAILED):
            self._generation = status.generation
            self._ahead.forget()
            self._forget()
        if status.state is EngineState.READY:
            restore, self._restore = self._restore, []
            self.prefetch(entry.adapter for entry in restore)
        self._changed.set()

    def _forget(self) -> None:
        """The engine died: nothing is resident, requests in flight are over, and the same adapters come back after."""
        lost = sorted(self.slots.values(), key=lambda entry: (entry.pinned, entry.priority), reverse=True)
        self._restore = lost or self._restore
        self._epoch += 1
        self._cache = None
        for entry in lost:
            entry.in_flight = 0
            entry.state = AdapterState.ABSENT
            if entry.ready is not None:  # asked for while draining
                self._enqueue(entry)

    async def _run(self) -> None:
        while True:
            await self._evict_drained()
            if self.engine.staging and not self._queue and self.engine.status.state is EngineState.READY:
                self._refill()
            if not self._queue or self.engine.status.state is not EngineState.READY:
                self._changed.clear()
                if not self.slots.drained() and (not self._queue or self.engine.status.state is not EngineState.READY):
                    await self._changed.wait()
                continue
            entry = self._queue[0]
            try:
                await self._load(entry)
            except EngineUnavailable as error:
                # The engine's own watcher brings it back; the entry stays first in the queue.
                log.warning("loading %s waits for engine %s: %s", entry.adapter.engine_name, self.engine.name, error)
                entry.state = AdapterState.STAGING
                await asyncio.sleep(0.05)
            except ServingError as error:
                self._fail(entry, error)

    async def _load(self, entry: Entry) -> None:
        """Bring the first of the queue into a slot."""
        if entry.waiters == 0 and not entry.wanted:
            self._queue.remove(entry)
            entry.state = AdapterState.ABSENT
            self._resolve(entry, EngineUnavailable("nobody waits for this load any more"))
            return
        entry.state = AdapterState.STAGING
        if not self.engine.staging:
            began = self._clock()
            await self.engine.stage(entry.adapter)
            self._on_stage(self._clock() - began)
        entry.state = AdapterState.STAGED
        await self._free_slot(entry)
        entry.state = AdapterState.LOADING
        epoch, began = self._epoch, self._clock()
        try:
            await self.engine.load(entry.adapter)
        except AdapterLoadFailed:
            self._on_load(self._clock() - began, "failed")
            raise
        if epoch != self._epoch:
            entry.state = AdapterState.STAGING
            return
        entry.load_s = self._clock() - began
        entry.loads += 1
        self._load_s += 0.2 * (entry.load_s - self._load_s)
        self._on_load(entry.load_s, "ok")
        self._queue.remove(entry)
        self._ahead.look(self._queue)
        self.longest_wait_s = max(self.longest_wait_s, self._clock() - entry.asked_at)
        entry.wanted, entry.failure = False, None
        entry.state = AdapterState.READY
        self.slots[entry.adapter.engine_name] = entry
        self.slots.touch(entry)
        self._resolve(entry)
        if entry.leaving and entry.waiters == 0:
            self._drain(entry)

    async def _free_slot(self, entry: Entry) -> None:
        """Return when a slot is free, evicting if need be, and draining a busy adapter if that takes too long."""
        if self.engine.slots == 0:
            raise AdapterLoadFailed(f"engine {self.engine.name} takes no adapters")
        drain_at = self._clock() + DRAIN_AFTER_S
        while self.slots.full:
            if all(resident.pinned for resident in self.slots.values()):
                raise AdapterLoadFailed(f"all {self.engine.slots} slots of engine {self.engine.name} are pinned")
            await self._evict_drained()
            if not self.slots.full:
                break
            victim = self.slots.lowest(evictable=True)
            if victim is not None:
                self.slots.popitem()
                await self._unload(victim)
                continue
            if self._clock() >= drain_at:
                self.slots.drain_one()
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DRAIN_AFTER_S):
                    await self._changed.wait()

    async def _evict_drained(self) -> None:
        while drained := self.slots.drained():
            self.slots.pop(drained[0].adapter.engine_name, None)
            await self._unload(drained[0])

    async def _unload(self, entry: Entry) -> None:
        """Free the slot of an entry that has left the cache; queue it again if requests came for it meanwhile."""
        entry.state = AdapterState.DRAINING
        epoch = self._epoch
        self.evictions += 1
        try:
            await self.engine.unload(entry.adapter.engine_name, entry.adapter.engine_id)
        except ServingError as error:
            log.info("unloading %s: %s", entry.adapter.engine_name, error)
        if epoch != self._epoch and entry.state is not AdapterState.DRAINING:
            return
        if entry.ready is not None:
            self._enqueue(entry)
        else:
            entry.state = AdapterState.ABSENT

    def _fail(self, entry: Entry, error: ServingError) -> None:
        log.warning("adapter %s: %s", entry.adapter.engine_name, error.message)
        self._queue.remove(entry)
        entry.state = AdapterState.ABSENT
        entry.wanted = False
        entry.failure = error
        entry.failed_until = self._clock() + FAILURE_COOLDOWN_S
        self._resolve(entry, error)

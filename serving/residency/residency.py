"""The adapters of one engine as requests see them: held while in use, one load however many requests wait for it."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Iterable

from adapters_registry.model import AdapterVersion
from serving.engine.base import Engine, EngineState, EngineStatus
from serving.errors import EngineUnavailable, Overloaded
from serving.residency.ahead import Ahead
from serving.residency.demand import Demand
from serving.residency.hold import Hold, Patience, StillCold
from serving.residency.loader import Loader
from serving.residency.slots import AdapterState, Entry, SlotCache
from serving.tasks import keep_running


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
        self._clock = clock
        self._entries: dict[str, Entry] = {}
        self._generation = engine.status.generation
        self._restore: list[Entry] = []
        self._demand = Demand(clock)
        self._ahead = Ahead(engine)
        self._loader = Loader(
            engine, self._ahead, on_load=on_load, on_stage=on_stage, on_idle=self._refill, clock=clock
        )
        self._loading: asyncio.Task[None] | None = None
        engine.on_change(self._engine_changed)

    @property
    def slots(self) -> SlotCache:
        """The slots."""
        return self._loader.slots

    @property
    def evictions(self) -> int:
        """Adapters that have left their slots."""
        return self._loader.evictions

    @property
    def longest_wait_s(self) -> float:
        """The longest, from asking for an adapter to ready."""
        return self._loader.longest_wait_s

    def start(self) -> None:
        """Begin to load what is asked for."""
        if self._loading is None:
            self._loading = keep_running(f"residency {self.engine.name}", self._loader.run)

    async def stop(self) -> None:
        """End loading; requests that wait get EngineUnavailable."""
        if self._loading is not None:
            self._loading.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._loading
            self._loading = None
        await self._loader.stop()
        self._ahead.stop()
        for entry in self._entries.values():
            self._loader.resolve(entry, EngineUnavailable("the server is shutting down"))

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
        return self._loader.epoch

    def release(self, entry: Entry, epoch: int) -> None:
        """Count one request out, unless the engine died since it came in."""
        if epoch != self._loader.epoch:
            return
        entry.in_flight -= 1
        if entry.in_flight == 0:
            if entry.leaving:
                self._drain(entry)
            self._loader.changed.set()

    async def await_ready(self, entry: Entry, patience: Patience) -> None:
        """Return when `entry` is ready, as one of the requests that wait for its single load, or for it to go on."""
        if entry.failure is not None and self._clock() < entry.failed_until:
            # Raised again as it is, one error would gather the frames, and so the bodies, of every request refused.
            raise entry.failure.with_traceback(None)
        fallback = patience.fallback_after_s
        self._loader.ask(entry)
        if fallback is not None and self._loader.expected_wait_s(entry) > fallback:
            entry.wanted = True
            raise StillCold
        deadline = self._clock() + min(patience.give_up_after_s, fallback if fallback is not None else float("inf"))
        entry.waiters += 1
        try:
            while entry.state is not AdapterState.READY:
                async with asyncio.timeout(max(0.0, deadline - self._clock())):
                    await asyncio.shield(self._loader.ask(entry))
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
            self._loader.changed.set()

    # -- operators and prefetch --------------------------------------------------------------------------------------

    def prefetch(self, adapters: Iterable[AdapterVersion]) -> None:
        """Load `adapters` into free slots, without evicting anything and without waiting; bring the others near."""
        others = []
        for adapter in adapters:
            entry = self._entry(adapter)
            if entry.state is not AdapterState.ABSENT:
                continue
            if self._loader.free > 0:
                entry.wanted = True
                self._loader.ask(entry)
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
            elif entry.state is not AdapterState.DRAINING:
                entry.leaving = False
        for adapter in served.values():
            if adapter.pinned:
                entry = self._entry(adapter)
                entry.pinned = True
                if entry.state is not AdapterState.READY:
                    entry.wanted = True
                    self._loader.ask(entry)
        self._loader.changed.set()

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
        return self._loader.waiting

    # -- inside ------------------------------------------------------------------------------------------------------

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
                max(0, self._loader.free),
            )
        )

    def _entry(self, adapter: AdapterVersion) -> Entry:
        entry = self._entries.get(adapter.engine_name)
        if entry is None:
            entry = self._entries[adapter.engine_name] = Entry(adapter, pinned=adapter.pinned)
        return entry

    def _drain(self, entry: Entry) -> None:
        """Let `entry` leave, and expect nobody to ask for it again."""
        self._demand.forget(entry.adapter.engine_name)
        if entry.state is AdapterState.ABSENT:
            self._entries.pop(entry.adapter.engine_name, None)
        self._loader.leave(entry)

    def _engine_changed(self, status: EngineStatus) -> None:
        if status.generation != self._generation or status.state in (EngineState.RESTARTING, EngineState.FAILED):
            self._generation = status.generation
            self._ahead.forget()
            self._restore = self._loader.forget() or self._restore  # the same adapters come back after
        if status.state is EngineState.READY:
            restore, self._restore = self._restore, []
            self.prefetch(entry.adapter for entry in restore)
        self._loader.changed.set()

"""The fleet: every engine with its residency, as the gateway uses them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from adapters_registry.model import AdapterVersion, RegistrySnapshot
from serving.engine.base import Answering, Engine, EngineState, EngineStatus
from serving.errors import NotFound
from serving.metrics import Metrics
from serving.residency import AdapterState, Patience, Residency


class Held(Protocol):
    """What a hold tells once it is entered: whether the adapter was ready, and the wait in seconds."""

    was_ready: bool
    waited_s: float


EngineKind = TypeVar("EngineKind", bound=Answering)


@dataclass(frozen=True, slots=True)
class Resident:
    """Where one adapter stands on its engine. `load_s` is the duration of its last load."""

    engine: str
    state: AdapterState = AdapterState.ABSENT
    in_flight: int = 0
    loads: int = 0
    load_s: float = 0.0


class Fleet(Protocol):
    """Engines and the adapters in them. Belongs to one event loop."""

    @property
    def engines(self) -> Sequence[Answering]:
        """From the weakest tier to the strongest."""
        ...

    async def start(self) -> None:
        """Begin; returns before the engines are ready."""
        ...

    async def stop(self) -> None:
        """End every engine that is ours."""
        ...

    def adopt(self, registered: RegistrySnapshot) -> None:
        """Follow the registry: pins, retired versions, champions to prefetch."""
        ...

    def hold(self, adapter: AdapterVersion, patience: Patience) -> AbstractAsyncContextManager[Held]:
        """See `Residency.hold`, on the engine of the adapter's base."""
        ...

    async def unload(self, adapter: AdapterVersion) -> None:
        """Let `adapter` leave once its requests have ended."""
        ...

    def resident(self, adapter: AdapterVersion) -> Resident | None:
        """Where `adapter` stands; None if no engine serves its base."""
        ...

    def on_change(self, callback: Callable[[], None]) -> None:
        """Call `callback` when an engine's state changes."""
        ...

    def measure(self, metrics: Metrics) -> None:
        """Set the gauges of engines and residency."""
        ...


def engine_of(engines: Sequence[EngineKind], base_name: str) -> EngineKind:
    """The engine of a base. Raises NotFound."""
    for engine in engines:
        if engine.base_name == base_name:
            return engine
    raise NotFound(f"no engine serves the base model {base_name}", param="model", code="model_not_found")


class LocalFleet:
    """Engines started, watched and filled by this process."""

    def __init__(self, engines: Sequence[Engine], metrics: Metrics, *, prefetch: bool) -> None:
        self.engines = tuple(engines)
        self._prefetch = prefetch
        self._registered = RegistrySnapshot(revision=-1)
        self._callbacks: list[Callable[[], None]] = []
        self._residencies: dict[str, Residency] = {}
        for engine in self.engines:
            self._residencies[engine.base_name] = _residency(engine, metrics)
            engine.on_change(partial(self._engine_changed, engine))

    async def start(self) -> None:
        """Start engines and their residency."""
        for engine in self.engines:
            await engine.start()
        for residency in self._residencies.values():
            residency.start()

    async def stop(self) -> None:
        """Stop both."""
        await asyncio.gather(*(residency.stop() for residency in self._residencies.values()))
        await asyncio.gather(*(engine.stop() for engine in self.engines))

    def adopt(self, registered: RegistrySnapshot) -> None:
        """See `Fleet.adopt`."""
        self._registered = registered
        for base, residency in self._residencies.items():
            residency.sync(version for version in registered.versions.values() if version.base == base)
            self._look_ahead(residency)

    def hold(self, adapter: AdapterVersion, patience: Patience) -> AbstractAsyncContextManager[Held]:
        """See `Residency.hold`."""
        return self.residency(adapter.base).hold(adapter, patience)

    async def unload(self, adapter: AdapterVersion) -> None:
        """See `Residency.unload`."""
        await self.residency(adapter.base).unload(adapter)

    def resident(self, adapter: AdapterVersion) -> Resident | None:
        """Where `adapter` stands."""
        residency = self._residencies.get(adapter.base)
        if residency is None:
            return None
        entry = residency.find(adapter.engine_name)
        if entry is None:
            return Resident(residency.engine.name)
        return Resident(residency.engine.name, entry.state, entry.in_flight, entry.loads, entry.load_s)

    def residency(self, base_name: str) -> Residency:
        """The residency of a base's engine. Raises NotFound."""
        engine_of(self.engines, base_name)
        return self._residencies[base_name]

    def on_change(self, callback: Callable[[], None]) -> None:
        """See `Fleet.on_change`."""
        self._callbacks.append(callback)

    def measure(self, metrics: Metrics) -> None:
        """Set the gauges."""
        for engine in self.engines:
            metrics.read_engine(engine)
        for residency in self._residencies.values():
            metrics.read_residency(residency)

    def _engine_changed(self, engine: Engine, status: EngineStatus) -> None:
        if status.state is EngineState.READY:
            self._look_ahead(self._residencies[engine.base_name])
        for callback in self._callbacks:
            callback()

    def _look_ahead(self, residency: Residency) -> None:
        """Load what agents serve with, and have the rest prepared, once the engine is ready."""
        engine, registered = residency.engine, self._registered
        if not engine.slots or engine.status.state is not EngineState.READY:
            return
        if self._prefetch:
            wanted = (find(agent) for find in (registered.champion, registered.canary) for agent in registered.agents)
            residency.prefetch(version for version in wanted if version and version.base == engine.base_name)
        residency.prepare(version for version in registered.versions.values() if version.base == engine.base_name)


def _residency(engine: Engine, metrics: Metrics) -> Residency:
    return Residency(
        engine,
        on_load=lambda seconds, outcome: metrics.load(engine.name, seconds, outcome),
        on_stage=lambda seconds: metrics.stage(engine.name, seconds),
    )

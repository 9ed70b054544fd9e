"""The parent's side: holds on behalf of workers, and tells them how the fleet stands."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from functools import partial
from pathlib import Path

from adapters_registry import AdapterRegistry, DatabaseError
from adapters_registry.model import AdapterVersion, RegistrySnapshot
from serving.control.wire import (
    Changed,
    Channel,
    Cold,
    EngineView,
    FromWorker,
    Held,
    Hold,
    Refresh,
    Refused,
    Release,
    ResidentView,
    Unload,
    View,
)
from serving.errors import AdapterLoadFailed, ServingError
from serving.fleet import LocalFleet
from serving.metrics import Metrics
from serving.residency import Patience, StillCold
from serving.tasks import keep_running

log = logging.getLogger(__name__)

VIEW_S = 0.1
"""How often a change of residency is looked for."""
REFRESH_S = 0.5


class ControlServer:
    """Serves workers on a unix socket at `path`. Belongs to the fleet's event loop."""

    def __init__(self, fleet: LocalFleet, registry: AdapterRegistry, path: Path, metrics: Metrics) -> None:
        self.fleet = fleet
        self._metrics = metrics
        self._registry = registry
        self._path = path
        self._registered = RegistrySnapshot(revision=-1)
        self._workers: set[Channel[FromWorker]] = set()
        self._server: asyncio.Server | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._refreshing = asyncio.Lock()

    async def start(self) -> None:
        """Start the fleet and listen."""
        await self.fleet.start()
        await self.refresh()
        self._server = await asyncio.start_unix_server(self._serve_worker, str(self._path))
        self._tasks = [
            keep_running("telling workers", self._tell_changes),
            keep_running("registry refresh", self._keep_fresh),
        ]

    async def stop(self) -> None:
        """Stop listening, then the fleet; workers have ended before."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._server is not None:
            self._server.close()
        for worker in list(self._workers):
            worker.close()
        await self.fleet.stop()

    @property
    def registered(self) -> RegistrySnapshot:
        """The registry as of the last refresh."""
        return self._registered

    async def refresh(self) -> None:
        """Adopt the registry's present state, and have the workers do so. A registry that cannot be read is logged."""
        async with self._refreshing:  # or an older reading could overtake a newer one
            try:
                registered = await asyncio.to_thread(self._registry.snapshot)
            except (DatabaseError, OSError) as error:
                log.warning("the registry cannot be read: %s", error)
                return
            if registered.revision != self._registered.revision:
                self._registered = registered
                self.fleet.adopt(registered)
                for worker in self._workers:
                    worker.send(Refresh())

    async def _keep_fresh(self) -> None:
        while True:
            await asyncio.sleep(REFRESH_S)
            await self.refresh()

    async def _tell_changes(self) -> None:
        told = self._view()
        while True:
            await asyncio.sleep(VIEW_S)
            self.fleet.measure(self._metrics)
            view = self._view()
            if view != told:
                told = view
                for worker in self._workers:
                    worker.send(view)

    async def _serve_worker(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        worker: Channel[FromWorker] = Channel(reader, writer, FromWorker)
        self._workers.add(worker)
        worker.send(self._view())
        holds: dict[int, asyncio.Task[None]] = {}
        try:
            while (message := await worker.receive()) is not None:
                await self._handle(message, worker, holds)
        finally:
            self._workers.discard(worker)
            for hold in holds.values():
                hold.cancel()
            worker.close()

    async def _handle(
        self, message: FromWorker, worker: Channel[FromWorker], holds: dict[int, asyncio.Task[None]]
    ) -> None:
        match message:
            case Hold():
                task = asyncio.get_running_loop().create_task(self._hold(message, worker))
                holds[message.id] = task
                task.add_done_callback(partial(_forget, holds, message.id))
            case Release(number):
                if number in holds:
                    holds[number].cancel()
            case Unload(adapter):
                version = await self._version(adapter)
                if version is not None:
                    await self.fleet.unload(version)
            case Changed():
                await self.refresh()

    async def _hold(self, wanted: Hold, worker: Channel[FromWorker]) -> None:
        """Hold until cancelled: by the worker's release, or by its end."""
        try:
            version = await self._version(wanted.adapter)
            if version is None:
                raise AdapterLoadFailed(f"{wanted.adapter} is not registered any more")
            async with self.fleet.hold(version, Patience(wanted.fallback_after_s, wanted.give_up_after_s)) as held:
                worker.send(Held(wanted.id, held.was_ready, held.waited_s))
                await asyncio.get_running_loop().create_future()
        except StillCold:
            worker.send(Cold(wanted.id))
        except ServingError as error:
            name = type(error).__name__
            worker.send(Refused(wanted.id, name, error.message, error.code, error.retry_after_s))

    async def _version(self, engine_name: str) -> AdapterVersion | None:
        version = self._registered.versions.get(engine_name)
        if version is None:  # registered by a worker a moment ago
            await self.refresh()
            version = self._registered.versions.get(engine_name)
        return version

    def _view(self) -> View:
        engines = [
            EngineView(
                name=engine.name,
                base_name=engine.base_name,
                upstream_model=engine.upstream_model,
                cost_per_mtok=engine.cost_per_mtok,
                tokens_per_s=engine.tokens_per_s,
                slots=engine.slots,
                max_lora_rank=engine.max_lora_rank,
                max_context=engine.max_context,
                base_url=engine.transport.base_url,
                socket_path=engine.transport.socket_path,
                headers=dict(engine.transport.headers),
                retry_stale=engine.transport.retry_stale,
                state=engine.status.state.value,
                generation=engine.status.generation,
                restarts=engine.status.restarts,
                detail=engine.status.detail,
                pid=engine.status.pid,
            )
            for engine in self.fleet.engines
        ]
        residents = [
            ResidentView(
                name, resident.engine, resident.state.value, resident.in_flight, resident.loads, resident.load_s
            )
            for name, version in self._registered.versions.items()
            if (resident := self.fleet.resident(version)) is not None
        ]
        return View(engines, residents)


def _forget(holds: dict[int, asyncio.Task[None]], number: int, _task: asyncio.Task[None]) -> None:
    holds.pop(number, None)

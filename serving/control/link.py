"""A worker's side: the fleet as the parent shows it, and holds that the parent keeps."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import TracebackType

from adapters_registry.model import AdapterVersion, RegistrySnapshot
from serving import errors
from serving.control.wire import (
    Changed,
    Channel,
    Cold,
    EngineView,
    FromParent,
    Held,
    Hold,
    Refresh,
    Refused,
    Release,
    ResidentView,
    Unload,
    View,
)
from serving.engine.base import EngineResponse, EngineState, EngineStatus
from serving.engine.transport import Transport
from serving.errors import EngineUnavailable
from serving.fleet import Resident
from serving.metrics import Metrics
from serving.residency import AdapterState, Patience, StillCold


class LinkedEngine:
    """An engine that the parent runs: its state is the parent's word, its answers come straight from it."""

    def __init__(self, view: EngineView, request_timeout_s: float) -> None:
        self._view = view
        self._since = time.monotonic()
        self._changed = asyncio.Event()
        self._transport = Transport(
            view.name,
            view.base_url,
            request_timeout_s=request_timeout_s,
            headers=view.headers,
            retry_stale=view.retry_stale,
        )
        self._transport.socket_path = view.socket_path
        self.name = view.name
        self.base_name = view.base_name
        self.cost_per_mtok = view.cost_per_mtok
        self.tokens_per_s = view.tokens_per_s

    @property
    def upstream_model(self) -> str:
        """See `Engine`."""
        return self._view.upstream_model

    @property
    def slots(self) -> int:
        """See `Engine`."""
        return self._view.slots

    @property
    def max_context(self) -> int | None:
        """See `Engine`."""
        return self._view.max_context

    @property
    def status(self) -> EngineStatus:
        """See `Engine`."""
        view = self._view
        return EngineStatus(
            EngineState(view.state),
            view.generation,
            view.restarts,
            view.detail,
            view.pid,
            seconds_in_state=time.monotonic() - self._since,
        )

    async def update(self, view: EngineView) -> bool:
        """Adopt the parent's view; whether the state changed."""
        if view.socket_path is not None and view.socket_path != self._view.socket_path:
            await self._transport.move(view.socket_path)
        changed = (view.state, view.generation) != (self._view.state, self._view.generation)
        if changed:
            self._since = time.monotonic()
        self._view = view
        changed_event, self._changed = self._changed, asyncio.Event()
        changed_event.set()
        return changed

    async def wait_ready(self, timeout_s: float) -> None:
        """See `Engine`."""
        try:
            async with asyncio.timeout(timeout_s):
                while (state := EngineState(self._view.state)) is not EngineState.READY:
                    if state is EngineState.FAILED:
                        break
                    await self._changed.wait()
        except TimeoutError:
            pass
        if EngineState(self._view.state) is not EngineState.READY:
            raise EngineUnavailable(f"engine {self.name} is {self._view.state}: {self._view.detail}")

    def open(
        self, path: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> AbstractAsyncContextManager[EngineResponse]:
        """See `Engine`."""
        return self._transport.open(path, body, headers)

    async def scrape_metrics(self) -> bytes:
        """See `Engine`."""
        if EngineState(self._view.state) is not EngineState.READY:
            return b""
        return await self._transport.fetch_metrics()

    async def close(self) -> None:
        """Close the connections to the engine."""
        await self._transport.close()


class LinkedHold:
    """See `serving.residency.Hold`; the parent holds."""

    __slots__ = ("_adapter", "_fleet", "_number", "_patience", "waited_s", "was_ready")

    def __init__(self, fleet: LinkedFleet, adapter: str, patience: Patience) -> None:
        self._fleet = fleet
        self._adapter = adapter
        self._patience = patience
        self._number = 0
        self.was_ready = False
        self.waited_s = 0.0

    async def __aenter__(self) -> LinkedHold:
        self._number, answer = self._fleet.ask(self._adapter, self._patience)
        try:
            held = await answer
        except asyncio.CancelledError:
            self._fleet.release(self._number)
            raise
        self.was_ready, self.waited_s = held.was_ready, held.waited_s
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._fleet.release(self._number)


class LinkedFleet:
    """See `Fleet`. Ends its process's server through `on_lost` when the parent is gone."""

    def __init__(self, path: Path, request_timeout_s: float, *, on_lost: Callable[[], None]) -> None:
        self.engines: tuple[LinkedEngine, ...] = ()
        self._path = path
        self._request_timeout_s = request_timeout_s
        self._on_lost = on_lost
        self._parent: Channel[FromParent] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._numbers = itertools.count(1)
        self._asked: dict[int, asyncio.Future[Held]] = {}
        self._residents: dict[str, ResidentView] = {}
        self._callbacks: list[Callable[[], None]] = []
        self._refresh: list[Callable[[], None]] = []

    async def start(self) -> None:
        """Connect, and learn what engines there are."""
        reader, writer = await asyncio.open_unix_connection(str(self._path))
        self._parent = Channel(reader, writer, FromParent)
        first = await self._parent.receive()
        if not isinstance(first, View):
            raise EngineUnavailable("the parent process is gone")
        self.engines = tuple(LinkedEngine(view, self._request_timeout_s) for view in first.engines)
        await self._adopt_view(first)
        self._reader = asyncio.get_running_loop().create_task(self._listen(self._parent), name="control link")

    async def stop(self) -> None:
        """Disconnect; the parent keeps the engines."""
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader
        if self._parent is not None:
            self._parent.close()
        await asyncio.gather(*(engine.close() for engine in self.engines))

    def adopt(self, registered: RegistrySnapshot) -> None:
        """Tell the parent to look; it follows the registry for all."""
        if self._parent is not None and registered.revision >= 0:
            self._parent.send(Changed())

    def hold(self, adapter: AdapterVersion, patience: Patience) -> LinkedHold:
        """See `Residency.hold`."""
        return LinkedHold(self, adapter.engine_name, patience)

    async def unload(self, adapter: AdapterVersion) -> None:
        """See `Residency.unload`."""
        if self._parent is not None:
            self._parent.send(Unload(adapter.engine_name))

    def resident(self, adapter: AdapterVersion) -> Resident | None:
        """Where `adapter` stands, as of the parent's last word."""
        view = self._residents.get(adapter.engine_name)
        if view is None:
            return next((Resident(each.name) for each in self.engines if each.base_name == adapter.base), None)
        return Resident(view.engine, AdapterState(view.state), view.in_flight, view.loads, view.load_s)

    def on_change(self, callback: Callable[[], None]) -> None:
        """See `Fleet.on_change`."""
        self._callbacks.append(callback)

    def on_refresh(self, callback: Callable[[], None]) -> None:
        """Call `callback` when another process has changed the registry."""
        self._refresh.append(callback)

    def measure(self, metrics: Metrics) -> None:
        """Leave the gauges to the parent, which counts for all."""

    # -- for LinkedHold ----------------------------------------------------------------------------------------------

    def ask(self, adapter: str, patience: Patience) -> tuple[int, asyncio.Future[Held]]:
        """Ask the parent to hold `adapter`; the number to release, and the answer."""
        if self._parent is None:
            raise EngineUnavailable("the parent process is gone")
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self._parent.send(Hold(number, adapter, patience.fallback_after_s, patience.give_up_after_s))
        return number, answer

    def release(self, number: int) -> None:
        """Let go of what was asked for."""
        self._asked.pop(number, None)
        if self._parent is not None:
            self._parent.send(Release(number))

    async def _listen(self, parent: Channel[FromParent]) -> None:
        while (message := await parent.receive()) is not None:
            match message:
                case Held(number):
                    self._answer(number, message)
                case Cold(number):
                    self._answer(number, StillCold())
                case Refused(number):
                    self._answer(number, _error(message))
                case View():
                    await self._adopt_view(message)
                case Refresh():
                    for callback in self._refresh:
                        callback()
        self._parent = None
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(EngineUnavailable("the parent process is gone"))
        self._on_lost()

    def _answer(self, number: int, answer: Held | Exception) -> None:
        future = self._asked.pop(number, None)
        if future is None or future.done():
            return
        if isinstance(answer, Exception):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    async def _adopt_view(self, view: View) -> None:
        self._residents = {resident.adapter: resident for resident in view.residents}
        changed = [await engine.update(seen) for engine, seen in zip(self.engines, view.engines, strict=True)]
        if any(changed):
            for callback in self._callbacks:
                callback()


def _error(refused: Refused) -> errors.ServingError:
    kinds = {
        kind.__name__: kind
        for kind in (errors.AdapterLoadFailed, errors.EngineUnavailable, errors.Overloaded, errors.NotFound)
    }
    kind = kinds.get(refused.error, errors.ServingError)
    return kind(refused.message, code=refused.code, retry_after_s=refused.retry_after_s)

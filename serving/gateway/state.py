"""What the gateway's routes share: the parts passed in, and the snapshot that decisions are made on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping
from typing import Any

from adapters_registry import AdapterRegistry, DatabaseError
from adapters_registry.model import AdapterVersion, RegistrySnapshot
from configs.agents import AgentPreset
from configs.settings import Settings
from router import (
    NOTHING_LEARNT,
    BaseTier,
    Decision,
    Learnt,
    Router,
    RouterSnapshot,
    Task,
    UnknownModel,
    resolve_agent,
)
from serving.admission import Admission
from serving.auth import KeyRing
from serving.engine.base import Answering, EngineState
from serving.errors import NotFound
from serving.fleet import Fleet, engine_of
from serving.gateway.memory import RoutingMemory
from serving.metrics import Metrics
from serving.recorder import Recorder
from serving.residency import AdapterState
from serving.services import Cases, RouterLearning, Training
from serving.tasks import keep_running

COLLECT_S = 600.0
"""How often the files of retired adapters are looked for."""
REFRESH_S = 0.5
"""How soon a change that another process made in the registry is seen."""
LEARNT_S = 2.0
"""how soon what was learned changes decisions"""


class Gateway:
    """The composed parts of one gateway process; built once and handed to every route. Belongs to one event loop."""

    log = logging.getLogger("loradock.gateway")
    clock = staticmethod(time.monotonic)

    def __init__(
        self,
        settings: Settings,
        *,
        fleet: Fleet,
        registry: AdapterRegistry,
        presets: Mapping[str, AgentPreset],
        keys: KeyRing,
        metrics: Metrics,
        recorder: Recorder,
        router: Router,
        learning: RouterLearning | None = None,
        training: Training | None = None,
        cases: Cases | None = None,
    ) -> None:
        self.settings = settings
        self.fleet = fleet
        self.registry = registry
        self.presets = presets
        self.keys = keys
        self.metrics = metrics
        self.recorder = recorder
        self.router = router
        self.learning = learning
        self.training = training
        self.cases = cases
        self.admission = Admission(settings.max_inflight, settings.max_queued, settings.queue_timeout_s)
        self._memory = RoutingMemory()
        self._learnt = NOTHING_LEARNT
        self._registered = RegistrySnapshot(revision=-1)
        self._snapshot: RouterSnapshot | None = None
        self._refresher: asyncio.Task[None] | None = None
        self._refreshing = asyncio.Lock()
        fleet.on_change(self._fleet_changed)

    # -- lifecycle ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the fleet and the recorder; returns before the engines are ready."""
        await self.fleet.start()
        self.recorder.start()
        await self.refresh()
        await self.refresh_learnt()
        self._refresher = keep_running("registry refresh", self._keep_fresh)

    async def stop(self) -> None:
        """End everything; requests have ended before."""
        if self._refresher is not None:
            self._refresher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._refresher
        await self.recorder.stop()
        await self.fleet.stop()

    # -- the registry's view -----------------------------------------------------------------------------------------

    @property
    def registered(self) -> RegistrySnapshot:
        """The registry as of the last refresh."""
        return self._registered

    async def refresh(self) -> None:
        """Adopt the registry's present state: decisions made from now on use it."""
        async with self._refreshing:  # or an older reading could overtake a newer one, and a version vanish again
            registered = await asyncio.to_thread(self.registry.snapshot)
            if registered.revision == self._registered.revision:
                return
            self._registered = registered
            self._snapshot = None
            self.fleet.adopt(registered)

    @property
    def learnt(self) -> Learnt:
        """What was learned for the router, as of the last refresh."""
        return self._learnt

    async def refresh_learnt(self) -> None:
        """Adopt router versions and evidence as they are stored: decisions made from now on use them."""
        if self.learning is None:
            return
        if await asyncio.to_thread(self.learning.revision) != self._learnt.revision:
            self._learnt = await asyncio.to_thread(self.learning.read)
            self._snapshot = None

    async def _keep_fresh(self) -> None:
        collect_at = self.clock() + COLLECT_S
        learn_at = self.clock() + LEARNT_S
        while True:
            await asyncio.sleep(REFRESH_S)
            try:
                await self.refresh()
                if self.clock() >= learn_at:
                    learn_at = self.clock() + LEARNT_S
                    await self.refresh_learnt()
                if self.clock() >= collect_at:
                    collect_at = self.clock() + COLLECT_S
                    grace_s = self.settings.request_timeout_s + self.settings.cold_timeout_s
                    await asyncio.to_thread(self.registry.collect_garbage, grace_s)
            except (DatabaseError, OSError) as error:
                self.log.warning("the registry cannot be read: %s", error)

    def _fleet_changed(self) -> None:
        self._snapshot = None

    # -- decisions ---------------------------------------------------------------------------------------------------

    def decide(self, task: Task) -> Decision:
        """The router's decision on the present snapshot.

        Raises NotFound for an unknown model, with the nearest names.
        """
        decision = self._decide(task)
        self._memory.note(task, decision)
        return decision

    def explain(self, task: Task) -> dict[str, Any]:
        """The decision without remembering it; raises NotFound like `decide`."""
        return self._decide(task).to_dict()

    def _decide(self, task: Task) -> Decision:
        try:
            return (self._learnt.router_of(task.owner) or self.router).decide(task, self.snapshot())
        except UnknownModel as error:
            nearest = f"; nearest: {', '.join(error.nearest)}" if error.nearest else ""
            raise NotFound(
                f"The model `{task.model}` does not exist{nearest}", param="model", code="model_not_found"
            ) from None

    def snapshot(self) -> RouterSnapshot:
        """What the router decides on; rebuilt after a change of the registry or of an engine."""
        if self._snapshot is None:
            tiers = [
                BaseTier(
                    name=engine.name,
                    base_name=engine.base_name,
                    cost_per_mtok=engine.cost_per_mtok,
                    ready=engine.status.state is not EngineState.FAILED,
                    slots=engine.slots,
                    tokens_per_s=engine.tokens_per_s,
                )
                for engine in self.fleet.engines
            ]
            self._snapshot = RouterSnapshot(
                registry=self._registered,
                tiers=tuple(tiers),
                presets=self.presets,
                sessions=self._memory.sessions,
                is_warm=self.is_warm,
                canary_share=self.settings.training.canary_share,
                routing=self.settings.routing,
                shares=self._memory.shares,
                evidence=self._learnt.evidence,
            )
        return self._snapshot

    def is_warm(self, adapter: AdapterVersion) -> bool:
        """Whether `adapter` is resident now."""
        resident = self.fleet.resident(adapter)
        return resident is not None and resident.state is AdapterState.READY

    def engine(self, base_name: str) -> Answering:
        """The engine of a base. Raises NotFound."""
        return engine_of(self.fleet.engines, base_name)

    def records(self, agent: str | None) -> bool:
        """Whether requests of `agent` become cases, as its preset says."""
        preset = resolve_agent(agent, self.presets) if agent else None
        return preset is None or self.presets[preset].training.record

    def known_agent(self, agent: str | None) -> str | None:
        """`agent` if it is a preset or registered, else None for none and `other`: labels must stay few."""
        if agent is None or agent in self._registered.agents or agent in self.presets:
            return agent
        return "other"

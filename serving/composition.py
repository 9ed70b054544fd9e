"""The composition root: from settings to the parts of a running endpoint. Only here are parts chosen and joined."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from adapters_registry import AdapterRegistry, BaseModelSpec, Database, open_database
from adapters_registry.errors import RegistryError, SourceError
from configs import embedded
from configs.agents import load_presets
from configs.settings import EMBEDDED, Settings
from router import Router
from serving.auth import KeyRing
from serving.control import ControlServer, LinkedFleet
from serving.engine.base import Engine
from serving.engine.factory import build_engines
from serving.fleet import Fleet, LocalFleet
from serving.gateway import Gateway
from serving.metrics import Metrics
from serving.recorder import Recorder
from training.casebank import CaseBank
from training.casebank.inbox import OutcomeSink
from training.casebank.service import CaseService
from training.dataset import purge
from training.jobs import JobStore
from training.jobs.files import FileStore
from training.jobs.service import TrainingService
from training.routing import LearntSource

log = logging.getLogger(__name__)

DEMO_ACTOR = "demo"


def compose_alone(settings: Settings, keys: KeyRing) -> tuple[Gateway, LocalFleet]:
    """One process that does everything, not started yet: the gateway, and the fleet that it starts."""
    metrics = Metrics()
    engines = build_engines(settings)
    database = open_database(settings.database)
    registry = _prepare_registry(settings, engines, database)
    fleet = LocalFleet(engines, metrics, prefetch=settings.prefetch)
    return _gateway(settings, keys, fleet, registry, metrics=metrics, database=database), fleet


def compose_parent(settings: Settings, control_path: Path) -> ControlServer:
    """The process that keeps the engines for several gateway processes."""
    metrics = Metrics()
    engines = build_engines(settings)
    registry = _prepare_registry(settings, engines, open_database(settings.database))
    fleet = LocalFleet(engines, metrics, prefetch=settings.prefetch)
    return ControlServer(fleet, registry, control_path, metrics)


def compose_worker(settings: Settings, keys: KeyRing, control_path: Path, on_lost: Callable[[], None]) -> Gateway:
    """One of several gateway processes; `on_lost` is called when the parent has gone."""
    metrics = Metrics()
    fleet = LinkedFleet(control_path, settings.request_timeout_s, on_lost=on_lost)
    database = open_database(settings.database)
    registry = open_registry(settings, build_engines(settings), database)
    gateway = _gateway(settings, keys, fleet, registry, metrics=metrics, database=database)
    refreshes: set[asyncio.Task[None]] = set()

    def refresh() -> None:
        task = asyncio.get_running_loop().create_task(gateway.refresh())
        refreshes.add(task)
        task.add_done_callback(refreshes.discard)

    fleet.on_refresh(refresh)
    return gateway


def _gateway(
    settings: Settings, keys: KeyRing, fleet: Fleet, registry: AdapterRegistry, *, metrics: Metrics, database: Database
) -> Gateway:
    presets = load_presets(settings.agents_dir)
    bank = CaseBank.from_settings(database, settings.training)
    return Gateway(
        settings,
        fleet=fleet,
        registry=registry,
        presets=presets,
        keys=keys,
        metrics=metrics,
        recorder=Recorder(OutcomeSink(bank) if settings.training.record else None, on_drop=metrics.drops.inc),
        router=Router.from_presets(presets),
        learning=LearntSource(database, settings.home, presets, settings.routing),
        training=compose_service(settings, database),
        cases=CaseService(bank, deleted=partial(purge, database, settings.home)),
    )


def compose_service(settings: Settings, database: Database) -> TrainingService:
    """The queue of training jobs and the uploads, for routes and commands."""
    store = JobStore(database, budget_usd=settings.training.budget_usd)
    return TrainingService(store, FileStore(database, settings.home), settings.home)


def _prepare_registry(settings: Settings, engines: Sequence[Engine], database: Database) -> AdapterRegistry:
    """Open the registry, clean what a killed registration left behind, and register the demo adapters."""
    registry = open_registry(settings, engines, database)
    registry.recover()
    if settings.demo:
        _register_demo(registry, settings)
    return registry


def open_registry(settings: Settings, engines: Sequence[Engine], database: Database) -> AdapterRegistry:
    """The registry, which takes adapters of the bases that `engines` serve."""
    settings.home.mkdir(parents=True, exist_ok=True)

    def bases() -> dict[str, BaseModelSpec]:
        # Asked at each registration: a remote engine tells its base, and a hub model is fetched, after the start.
        return {engine.base_name: _base_spec(engine) for engine in engines if engine.slots}

    return AdapterRegistry(database, settings.home, bases=bases)


def _base_spec(engine: Engine) -> BaseModelSpec:
    """What adapters of `engine` must match; without shapes where the engine's weights are not on this machine."""
    if engine.model_path is not None:
        try:
            return BaseModelSpec.from_folder(
                engine.model_path, engine.base_name, engine.base_aliases, max_lora_rank=engine.max_lora_rank
            )
        except SourceError as error:
            log.warning("adapters of %s are checked without its shapes: %s", engine.base_name, error.message)
    return BaseModelSpec(engine.base_name, tuple(engine.base_aliases), max_lora_rank=engine.max_lora_rank)


def _register_demo(registry: AdapterRegistry, settings: Settings) -> None:
    """Register the demo adapters for the embedded base, once: what an operator changed or retired stays so."""
    if not any(engine.kind == "vllm" and engine.model == EMBEDDED for engine in settings.resolved_engines):
        return
    known = {version.name for version in registry.list_versions(include_retired=True)}
    for folder in sorted(embedded.ADAPTERS.iterdir()):
        if (folder / "adapter_config.json").is_file() and folder.name not in known:
            try:
                registry.register(folder.name, str(folder), agent=folder.name, actor=DEMO_ACTOR)
            except RegistryError as error:
                log.warning("demo adapter %s: %s", folder.name, error.message)

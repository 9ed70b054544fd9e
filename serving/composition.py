"""The composition root: from settings to a running endpoint. The only place where the parts are chosen and joined."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from adapters_registry import AdapterRegistry, BaseModelSpec, open_database
from adapters_registry.errors import RegistryError
from configs import embedded
from configs.agents import load_presets
from configs.settings import EMBEDDED, Settings
from router import Router
from serving.auth import KeyRing
from serving.engine.base import Engine
from serving.fleet import LocalFleet
from serving.gateway import Gateway
from serving.metrics import Metrics
from serving.recorder import Recorder

log = logging.getLogger(__name__)

DEMO_ACTOR = "demo"


def open_registry(settings: Settings, engines: Sequence[Engine]) -> AdapterRegistry:
    """The registry of `settings.home`, its database migrated and what a killed registration left behind cleaned."""
    settings.home.mkdir(parents=True, exist_ok=True)
    bases = {engine.base_name: base_spec(engine) for engine in engines if engine.slots}
    registry = AdapterRegistry(open_database(settings.database), settings.home, bases=bases)
    registry.recover()
    return registry


def base_spec(engine: Engine) -> BaseModelSpec:
    """What adapters of `engine` must match; without shapes where the engine's weights are not on this machine."""
    if engine.model_path is not None:
        return BaseModelSpec.from_folder(
            engine.model_path, engine.base_name, engine.base_aliases, engine.max_lora_rank, per_module_scaling=False
        )
    return BaseModelSpec(engine.base_name, tuple(engine.base_aliases), max_lora_rank=engine.max_lora_rank)


def build_gateway(settings: Settings, keys: KeyRing, engines: Sequence[Engine]) -> Gateway:
    """Everything behind the endpoint, not started yet."""
    metrics = Metrics()
    presets = load_presets(settings.agents_dir)
    registry = open_registry(settings, engines)
    if settings.demo:
        register_demo(registry, engines, settings)
    return Gateway(
        settings,
        fleet=LocalFleet(engines, metrics, prefetch=settings.prefetch),
        registry=registry,
        presets=presets,
        keys=keys,
        metrics=metrics,
        recorder=Recorder(None, on_drop=metrics.drops.inc),
        router=Router.from_presets(presets),
    )


def register_demo(registry: AdapterRegistry, engines: Sequence[Engine], settings: Settings) -> None:
    """Register the demo adapters for the embedded base, once: what an operator changed or retired stays so."""
    bases = {engine.model for engine in settings.resolved_engines if engine.kind == "vllm"}
    if EMBEDDED not in bases:
        return
    known = {version.name for version in registry.list_versions(include_retired=True)}
    for folder in sorted(embedded.ADAPTERS.iterdir()):
        if (folder / "adapter_config.json").is_file() and folder.name not in known:
            try:
                registry.register(folder.name, str(folder), agent=folder.name, actor=DEMO_ACTOR)
            except RegistryError as error:
                log.warning("demo adapter %s: %s", folder.name, error.message)

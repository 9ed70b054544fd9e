"""The composition root of the training worker, which empties the queue of jobs.

`run_worker` is a process of its own: a child of `loradock serve` (see `serving.training_process`), or
`loradock train worker`. It asks the endpoint over HTTP like any client, and imports no torch: trainers are processes
of their own again.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adapters_registry import AdapterRegistry, Database, open_database
from configs.agents import AgentPreset, load_presets
from configs.settings import EMBEDDED, Settings
from configs.training import TrainingPreset
from router import resolve_agent
from serving.engine.base import Engine
from serving.engine.factory import build_engines
from training.casebank import CaseBank
from training.casebank.housekeeping import Housekeeper
from training.dataset import DatasetConfig, purge
from training.gate.canary import Canaries
from training.gate.rewards import CaseRewards
from training.jobs import JobStore
from training.jobs.bases import describe_base
from training.jobs.claims import Claims, Prices
from training.jobs.gpus import probe
from training.jobs.join import BankCases, BankDatasets, EndpointJudge, ProcessTrainers
from training.jobs.parts import Base, Parts
from training.jobs.pipeline import Pipeline, Rules
from training.jobs.triggers import TriggerRules, Triggers
from training.jobs.worker import Pace, Worker
from training.routing import RouterKeeper

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoint:
    """Where the gate asks, and the API key that it may need."""

    url: str
    key: str | None = None


def compose_worker(
    settings: Settings, database: Database, registry: AdapterRegistry, engines: Sequence[Engine], endpoint: Endpoint
) -> Worker:
    """A worker that judges through `endpoint`."""
    training, presets = settings.training, load_presets(settings.agents_dir)
    bank = CaseBank.from_settings(database, training)
    capacity = partial(probe, training.cpu_jobs)
    has_gpus = bool(capacity().gpus)
    parts = Parts(
        cases=BankCases(bank, training.reward_threshold),
        datasets=BankDatasets(bank, partial(_config_of, settings, presets), settings.home),
        trainers=ProcessTrainers(
            partial(_training_of, presets),
            registry.resolve,
            lambda: has_gpus,
            training.cpu_threads,
            training.cpu_jobs,
        ),
        judge=EndpointJudge(
            endpoint.url,
            endpoint.key,
            general_loss=training.general_loss,
            suites_of=lambda agent: (*training.suites, *_training_of(presets, agent).suites),
        ),
        canaries=Canaries(
            CaseRewards(database), requests=training.canary_requests, timeout_s=training.canary_timeout_s
        ),
        bases=partial(_bases, settings, engines),
        preferred_base=partial(_preferred_base, presets),
    )
    store = JobStore(database, budget_usd=training.budget_usd)
    prices = Prices(training.usd_per_gpu_hour, training.usd_per_cpu_hour)
    claims = Claims(store, lease_s=training.lease_s, prices=prices, endpoint=endpoint.url)
    pipeline = Pipeline(claims, registry, parts, settings.home, Rules(training.watch_s))
    rules = TriggerRules(training.trigger_min_cases, training.trigger_growth, training.cooldown_s, training.dry_run)
    triggers = Triggers(store, registry, parts, rules, lambda agent: _training_of(presets, agent).enabled)
    return Worker(claims, pipeline, triggers, capacity, pace=Pace(training.poll_s, training.max_attempts))


def run_worker(settings: Settings, endpoint: Endpoint, ended: Callable[[], object] | None = None) -> None:
    """Work until SIGTERM or SIGINT, or until `ended` returns (it is called in a thread)."""
    from serving.composition import open_registry

    logging.getLogger("httpx").setLevel(logging.WARNING)  # or the log tells each question of the gate
    database = open_database(settings.database)
    engines = build_engines(settings)
    registry = open_registry(settings, engines, database)
    worker = compose_worker(settings, database, registry, engines, endpoint)

    def stop(*_: object) -> None:
        worker.stop()

    signal.signal(signal.SIGTERM, stop)
    if ended is None:
        signal.signal(signal.SIGINT, stop)
    else:
        threading.Thread(target=partial(_stop_after, ended, worker), name="parent", daemon=True).start()
    training = settings.training
    keeper = Housekeeper(
        CaseBank.from_settings(database, training), training.retention_days, partial(purge, database, settings.home)
    )
    keeper.start()
    router_keeper = RouterKeeper(
        database,
        settings.home,
        load_presets(settings.agents_dir),
        tuple(engine.base_name for engine in engines),
        settings.routing,
    )
    router_keeper.start()
    log.info("training worker %s asks %s", os.getpid(), endpoint.url)
    try:
        worker.run()
    finally:
        router_keeper.stop()
        keeper.stop()
        database.close()


def _stop_after(ended: Callable[[], object], worker: Worker) -> None:
    ended()
    worker.stop()


def _training_of(presets: Mapping[str, AgentPreset], agent: str) -> TrainingPreset:
    preset = resolve_agent(agent, presets)
    return presets[preset].training if preset else TrainingPreset()


def _config_of(settings: Settings, presets: Mapping[str, AgentPreset], agent: str) -> DatasetConfig:
    return DatasetConfig.of(settings.training, _training_of(presets, agent))


def _preferred_base(presets: Mapping[str, AgentPreset], agent: str) -> str | None:
    preset = resolve_agent(agent, presets)
    return presets[preset].base if preset else None


def _bases(settings: Settings, engines: Sequence[Engine]) -> dict[str, Base]:
    """Bases that adapters can be served on, the weakest tier first."""
    found = {}
    for engine, told in zip(engines, settings.resolved_engines, strict=True):
        if engine.slots:
            source = str(engine.model_path) if engine.model_path else _named_source(told.model, engine.base_name)
            found[engine.base_name] = describe_base(engine.base_name, source, engine.max_lora_rank)
    return found


def _named_source(model: str, base_name: str) -> str:
    """Where the trainer finds a base whose files are not known here: the hub's name for it."""
    return base_name if model in {EMBEDDED, "remote"} else str(Path(model).expanduser()) if model[0] in "~." else model

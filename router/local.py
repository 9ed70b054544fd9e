"""Decisions from Python, without a server: on a snapshot passed in, or on what the local settings point at."""

from __future__ import annotations

from dataclasses import replace

from adapters_registry import AdapterRegistry, RegistrySnapshot, open_database
from configs.agents import load_presets
from configs.settings import Settings, load_settings
from router.decision import Decision
from router.policy import Router
from router.snapshot import BaseTier, RouterSnapshot
from router.task import Task


def route_with_adapter(
    task: str | Task, agent_name: str | None = None, *, snapshot: RouterSnapshot | None = None
) -> Decision:
    """Decide where `task` goes; with an `agent_name`, as that agent's task. `to_dict()` is what `/v1/route` answers.

    Without a snapshot, reads the settings and the registry of this machine; for many tasks, take `local_snapshot()`
    once. Raises UnknownModel where a Task names a model that does not exist, and what `local_snapshot` raises.
    """
    if isinstance(task, str):
        task = Task.from_messages(task, agent=agent_name)
    elif agent_name is not None:
        task = replace(task, agent=agent_name)
    snapshot = local_snapshot() if snapshot is None else snapshot
    return Router.from_presets(snapshot.presets).decide(task, snapshot)


def local_snapshot(settings: Settings | None = None) -> RouterSnapshot:
    """Read the registry and the presets; every engine counts as up, every adapter as cold, nothing as learned.

    Raises SettingsError for wrong settings and RegistryError for a database that cannot be read.
    """
    settings = load_settings().settings if settings is None else settings
    tiers = tuple(
        BaseTier(
            engine.name,
            engine.base_name,
            engine.cost_per_mtok,
            slots=0 if engine.kind == "openai" else 1,
            tokens_per_s=engine.tokens_per_s,
        )
        for engine in settings.resolved_engines
    )
    presets = load_presets(settings.agents_dir)
    return RouterSnapshot(_registered(settings), tiers, presets, routing=settings.routing)


def _registered(settings: Settings) -> RegistrySnapshot:
    if settings.database_url is None and not (settings.home / "loradock.db").is_file():
        return RegistrySnapshot(revision=0)
    database = open_database(settings.database)
    try:
        return AdapterRegistry(database, settings.home, bases={}).snapshot()
    finally:
        database.close()

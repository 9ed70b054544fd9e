"""The registry as a service: one object per process for all its threads, beside other processes on the same data."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from adapters_registry import queries
from adapters_registry.database import Database
from adapters_registry.digest import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.errors import AdapterNotFound, SourceError
from adapters_registry.intake import AliasWish, Bases, Intake, Order, Progress
from adapters_registry.lifecycle import Change, changing
from adapters_registry.model import AdapterVersion, Alias, AliasMove, AuditEntry, RegistrySnapshot, State
from adapters_registry.sources import DEFAULT_MAX_BYTES
from adapters_registry.store import AdapterStore
from adapters_registry.tables import AdapterRow, RevisionRow, VersionRow


def _silent(_step: str, _done: int, _total: int | None) -> None:
    """Report to nobody."""


class AdapterRegistry:
    """Immutable adapter versions with their lifecycle, in `database` and the folder `root`.

    `bases` are the base models served here by public name, or a function that tells them anew at each registration.
    Sources above `max_bytes` are refused. Call `recover` once at start. Errors are those of `adapters_registry.errors`.
    """

    def __init__(
        self,
        database: Database,
        root: Path,
        *,
        bases: Bases | Callable[[], Bases],
        max_bytes: int = DEFAULT_MAX_BYTES,
    ) -> None:
        self._database = database
        self._store = AdapterStore(root)
        self._intake = Intake(database, self._store, bases if callable(bases) else lambda: bases, max_bytes)
        self._snapshot: RegistrySnapshot | None = None
        self._snapshot_lock = threading.Lock()
        self._checked = (-1, 0.0)
        self._changes = 0

    def register(
        self,
        name: str,
        source: str | Path,
        *,
        agent: str | None = None,
        base: str | None = None,
        alias: AliasWish | None = None,
        pin: bool = False,
        actor: str = "local",
        allow_local: bool = True,
        progress: Progress | None = None,
    ) -> AdapterVersion:
        """Fetch, check, store and record an adapter; all of it or nothing.

        `agent` defaults to the agent that `name` already belongs to, else to `name` itself; `base` to the one the
        adapter records, or the one its shapes fit. Without `alias`, the version becomes champion if its agent has none.
        The same content again returns the same version. Steps that `progress` tells: fetching, checking, staged,
        published, recorded (not yet committed), committed. Raises AdapterInvalid, SourceError or LifecycleError.
        """
        order = Order(name, source, agent, base, alias, pin, actor, allow_local)
        try:
            return self._intake.register(order, progress or _silent)
        finally:
            self._changes += 1

    def promote(
        self, name: str, version: str | None = None, *, actor: str, alias: Alias = Alias.CHAMPION
    ) -> AdapterVersion:
        """Point the agent's `alias` at a version, by default the newest of `name`. Idempotent."""
        with self._changing(actor) as change:
            row = change.find(name, version)
            change.promote(row, Alias(alias))
            return self._told(row)

    def rollback(self, name_or_agent: str, *, actor: str) -> AdapterVersion:
        """Return the agent to its champion before; repeated, walks further back past retired ones."""
        with self._changing(actor) as change:
            is_agent = sa.select(AdapterRow).filter_by(agent=name_or_agent).limit(1)
            adapter = change.session.get(AdapterRow, name_or_agent)
            if change.session.scalar(is_agent) is not None:
                agent = name_or_agent
            elif adapter is not None:
                agent = adapter.agent
            else:
                raise self._unknown(name_or_agent)
            return self._told(change.rollback(agent))

    def retire(self, name: str, version: str | None = None, *, actor: str = "local") -> tuple[AdapterVersion, ...]:
        """Take one version, or all of `name`, out of service. Files stay until `collect_garbage`."""
        with self._changing(actor) as change:
            chosen = change.find(name, version)
            rows = [chosen] if version is not None else queries.live_versions(change.session, name)
            for row in rows:
                change.retire(row)
            return tuple(self._told(row) for row in rows)

    def pin(self, name: str, version: str | None = None, *, actor: str = "local") -> AdapterVersion:
        """Pin a version, by default the one that the bare name means."""
        wanted = version or self.get(name).digest
        with self._changing(actor) as change:
            row = change.find(name, wanted)
            change.pin(row, pinned=True)
            return self._told(row)

    def unpin(self, name: str, version: str | None = None, *, actor: str = "local") -> AdapterVersion:
        """Unpin a version, by default every version of `name`; returns that, or the one that the bare name means."""
        wanted = version or self.get(name).digest
        with self._changing(actor) as change:
            chosen = change.find(name, wanted)
            for row in [chosen] if version is not None else queries.live_versions(change.session, name):
                change.pin(row, pinned=False)
            return self._told(chosen)

    def set_state(self, name: str, version: str, state: State, *, actor: str = "local") -> AdapterVersion:
        """Move a version between validated, candidate and canary."""
        with self._changing(actor) as change:
            row = change.find(name, version)
            change.set_state(row, State(state))
            return self._told(row)

    def snapshot(self, max_age_s: float = 0.0) -> RegistrySnapshot:
        """The registry now, in memory; read anew only after a change, by whichever process.

        Whether there was one costs a query (0.3 ms on SQLite, 1.5 ms on PostgreSQL); with `max_age_s`, changes of
        other processes may be seen that much later, and calls in between cost nothing. Own changes show at once.
        """
        cached, changes, now = self._snapshot, self._changes, time.monotonic()
        if cached is not None and self._checked[0] == changes and now - self._checked[1] < max_age_s:
            return cached
        revision = self._database.scalar(sa.select(RevisionRow.revision))
        if cached is not None and cached.revision == revision:
            self._checked = (changes, now)
            return cached
        with self._snapshot_lock:
            cached = self._snapshot
            if cached is None or cached.revision != revision:
                with self._database.read() as session:
                    self._snapshot = cached = queries.read_snapshot(session, self._store.adapters)
            self._checked = (changes, now)
            return cached

    def get(self, name: str) -> AdapterVersion:
        """The version that the bare `name` means: the champion if it is one of them, else the newest."""
        snapshot = self.snapshot()
        if name not in snapshot.newest:
            raise self._unknown(name)
        return snapshot.newest[name]

    def resolve(self, ref: str) -> AdapterVersion:
        """What `name`, `name@version` (6 hex digits or more), `name@champion` or `name@challenger` means now."""
        return queries.resolve(self.snapshot(), ref)

    def nearest(self, name: str, n: int = 3) -> list[str]:
        """Names of adapters and agents that look most like `name`, best first."""
        return queries.nearest(self.snapshot(), name, n)

    def list_versions(self, name: str | None = None, *, include_retired: bool = False) -> tuple[AdapterVersion, ...]:
        """Versions by name, newest first. Raises AdapterNotFound for a name that never was."""
        with self._database.read() as session:
            if name is not None and session.get(AdapterRow, name) is None:
                raise self._unknown(name)
            rows = queries.list_rows(session, name, include_retired=include_retired)
            return tuple(self._told(row) for row in rows)

    def history(self, agent: str) -> tuple[AliasMove, ...]:
        """Every move of the agent's aliases, oldest first; empty for an unknown agent."""
        with self._database.read() as session:
            return queries.alias_moves(session, agent)

    def audit(self, limit: int = 100, name: str | None = None) -> tuple[AuditEntry, ...]:
        """The latest changes, newest first."""
        with self._database.read() as session:
            return queries.audit_entries(session, limit, name)

    def export(self, ref: str, folder: Path) -> Path:
        """Write the adapter as a PEFT folder that names its base. Raises SourceError if `folder` holds anything."""
        version = self.resolve(ref)
        with self._database.read() as session:
            recorded = queries.find_version(session, version.name, version.digest).recorded_base
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise SourceError(f"{folder} exists and is not an empty folder", param="folder", code="folder_not_empty")
        folder.mkdir(parents=True, exist_ok=True)
        config = json.loads((version.path / CONFIG_FILE).read_bytes())
        config["base_model_name_or_path"] = recorded or version.base
        shutil.copyfile(version.path / WEIGHTS_FILE, folder / WEIGHTS_FILE)
        (folder / CONFIG_FILE).write_text(json.dumps(config, sort_keys=True, indent=2) + "\n")
        return folder

    def verify(self, version: AdapterVersion) -> bool:
        """Whether the stored files still are what was registered; reads them whole."""
        return self._store.is_intact(version.name, version.digest)

    def recover(self) -> int:
        """Remove what registrations of dead processes left; safe beside live ones. Returns how many leftovers went."""
        return self._store.sweep(self._intake.has_row)

    def collect_garbage(self, grace_s: float) -> tuple[AdapterVersion, ...]:
        """Delete the files of versions retired more than `grace_s` seconds ago; returns those whose files went."""
        before = datetime.now(UTC) - timedelta(seconds=grace_s)
        due = sa.select(VersionRow).where(VersionRow.state == State.RETIRED, VersionRow.retired_at <= before)
        with self._database.read() as session:
            candidates = [self._told(row) for row in session.scalars(due)]
        return tuple(version for version in candidates if version.path.exists() and self._collect(version, before))

    def _collect(self, version: AdapterVersion, before: datetime) -> bool:
        with self._store.publishing(), self._database.read() as session:
            row = queries.find_version(session, version.name, version.digest)
            # it may have come back, and only under this lock can it not
            still_due = row.state == State.RETIRED and row.retired_at is not None and row.retired_at <= before
            return still_due and self._store.remove(version.name, version.digest)

    @contextmanager
    def _changing(self, actor: str) -> Iterator[Change]:
        try:
            with changing(self._database, actor) as change:
                yield change
        finally:
            self._changes += 1

    def _told(self, row: VersionRow) -> AdapterVersion:
        return queries.to_version(row, self._store.adapters)

    def _unknown(self, name: str) -> AdapterNotFound:
        return queries.not_found(self.snapshot(), name, name)

"""The way in: fetch, check, stage, publish, record. All the work is done before the registry is touched.

Whatever kills it, the registry holds the old state or the new one: up to the rename there is only a staging folder,
between rename and commit only a folder without a row, and `AdapterStore.sweep` removes both.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import sqlalchemy as sa

from adapters_registry.base import BaseModelSpec
from adapters_registry.database import Database, DatabaseError
from adapters_registry.digest import write_canonical
from adapters_registry.errors import AdapterInvalid, LifecycleError
from adapters_registry.lifecycle import NewVersion, changing, check_binding
from adapters_registry.model import AdapterVersion, Alias, engine_id_of
from adapters_registry.peft_config import read_config
from adapters_registry.queries import to_version
from adapters_registry.sources import SourceFiles, fetch, open_regular
from adapters_registry.store import AdapterStore
from adapters_registry.tables import AdapterRow, VersionRow
from adapters_registry.validation import check_adapter, check_name, choose_base
from adapters_registry.weights import read_header

Bases = Mapping[str, BaseModelSpec]
Progress = Callable[[str, int, int | None], None]
"""step, bytes done, bytes in all where known; before `committed`, an exception from it undoes all"""
AliasWish = Literal["champion", "challenger", "none"]


@dataclass(frozen=True, slots=True)
class Order:
    """What a caller asks to be registered; None leaves the choice to the registry."""

    name: str
    source: str | Path
    agent: str | None
    base: str | None
    alias: AliasWish | None
    pin: bool
    actor: str
    allow_local: bool


class Intake:
    """Carries orders out. Thread-safe; registrations run side by side up to the short moment of publication."""

    def __init__(self, database: Database, store: AdapterStore, bases: Callable[[], Bases], max_bytes: int) -> None:
        self._database = database
        self._store = store
        self._bases = bases
        self._max_bytes = max_bytes

    def register(self, order: Order, tell: Progress) -> AdapterVersion:
        """See `AdapterRegistry.register`."""
        _check_alias(order.alias)
        bases = self._bases()
        agent, base = self._bind(order, bases)
        with self._store.stage() as staging:
            scratch, staged = staging / "source", staging / "adapter"
            scratch.mkdir()
            staged.mkdir()
            files = fetch(
                order.source,
                scratch,
                max_bytes=self._max_bytes,
                allow_local=order.allow_local,
                progress=lambda done, total: tell("fetching", done, total),
            )
            new = self._check(files, staged, tell, name=order.name, agent=agent, base=base, bases=bases)
            tell("staged", new.size_bytes, new.size_bytes)
            with self._store.publishing():
                version = self._publish(order, new, staged, tell)
        tell("committed", new.size_bytes, new.size_bytes)
        return version

    def has_row(self, name: str, digest: str) -> bool:
        """Whether that version is recorded, retired or not."""
        with self._database.read() as session:
            return session.scalar(sa.select(VersionRow.id).filter_by(name=name, digest=digest)) is not None

    def _bind(self, order: Order, bases: Bases) -> tuple[str, str | None]:
        """The agent, and the base if it is settled already. Refused early, because fetching may take minutes."""
        name = check_name(order.name)
        if name in bases:
            raise AdapterInvalid(f"{name!r} is the name of a base model", param="name", code="bad_name")
        if order.agent is not None:
            check_name(order.agent, "agent")
        with self._database.read() as session:
            bound = session.get(AdapterRow, name)
            if bound is None:
                return order.agent or name, order.base
            check_binding(bound, name, order.agent or bound.agent, order.base or bound.base)
            return bound.agent, bound.base if bound.base in bases else order.base

    def _check(
        self,
        files: SourceFiles,
        staged: Path,
        tell: Progress,
        *,
        name: str,
        agent: str,
        base: str | None,
        bases: Bases,
    ) -> NewVersion:
        config = read_config(files.read_config())
        with open_regular(files.weights) as weights:
            header = read_header(weights)
            spec = choose_base(bases, base, config, header)
            adapter = check_adapter(config, header, spec)
            digest, size = write_canonical(adapter, weights, staged, lambda done, total: tell("checking", done, total))
        return NewVersion(
            name=name,
            agent=agent,
            base=spec.name,
            digest=digest,
            engine_id=engine_id_of(name, digest),
            rank=adapter.rank,
            size_bytes=size,
            target_modules=adapter.target_modules,
            source=files.label,
            recorded_base=config.base_model,
        )

    def _publish(self, order: Order, new: NewVersion, staged: Path, tell: Progress) -> AdapterVersion:
        alias = Alias(order.alias) if order.alias not in (None, "none") else None
        self._store.publish(staged, new.name, new.digest)
        try:
            tell("published", new.size_bytes, new.size_bytes)
            with changing(self._database, order.actor) as change:
                row = change.add(new, alias, default_alias=order.alias is None, pin=order.pin)
                tell("recorded", new.size_bytes, new.size_bytes)
                return to_version(row, self._store.adapters)
        except BaseException:
            # if the database cannot say whether the commit arrived, the files stay, and `sweep` decides later
            with suppress(DatabaseError):
                if not self.has_row(new.name, new.digest):
                    self._store.remove(new.name, new.digest)
            raise


def _check_alias(alias: str | None) -> None:
    if alias not in (None, "none", *Alias):
        raise LifecycleError(f"alias {str(alias)[:40]!r} is none of champion, challenger, none", param="alias")

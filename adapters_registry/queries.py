"""Reading the registry: rows to the nouns of `model`, snapshots, and what a reference like `name@version` means."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from types import MappingProxyType

import sqlalchemy as sa
from sqlalchemy.orm import Session

from adapters_registry.errors import AdapterNotFound
from adapters_registry.model import (
    AdapterVersion,
    AgentAliases,
    Alias,
    AliasMove,
    AuditEntry,
    RegistrySnapshot,
    State,
)
from adapters_registry.tables import AdapterRow, AliasEventRow, AliasRow, AuditRow, RevisionRow, VersionRow

MIN_PREFIX = 6
HEX = re.compile(r"[0-9a-f]{6,64}")


def to_version(row: VersionRow, root: Path) -> AdapterVersion:
    """The row as the rest of the project sees it; `root` is the store's folder of adapters."""
    return AdapterVersion(
        name=row.name,
        digest=row.digest,
        agent=row.adapter.agent,
        base=row.adapter.base,
        rank=row.rank,
        path=root / row.name / row.digest,
        size_bytes=row.size_bytes,
        state=State(row.state),
        created_at=row.created_at,
        source=row.source,
        pinned=row.pinned,
        target_modules=tuple(row.target_modules),
    )


def engine_name(row: VersionRow) -> str:
    """`name@version`."""
    return f"{row.name}@{row.version}"


def alias_row(session: Session, agent: str, alias: Alias) -> AliasRow | None:
    """Where the alias points, or None."""
    return session.get(AliasRow, (agent, str(alias)))


def live_versions(session: Session, name: str) -> list[VersionRow]:
    """Versions of `name` that are not retired, newest first."""
    statement = (
        sa.select(VersionRow)
        .where(VersionRow.name == name, VersionRow.state != State.RETIRED)
        .order_by(VersionRow.sequence.desc())
    )
    return list(session.scalars(statement))


def find_version(session: Session, name: str, prefix: str) -> VersionRow:
    """The version of `name` whose digest begins with `prefix`, retired or not. Raises AdapterNotFound."""
    prefix = prefix.lower()
    rows: list[VersionRow] = []
    if HEX.fullmatch(prefix):
        statement = sa.select(VersionRow).where(VersionRow.name == name, VersionRow.digest.startswith(prefix))
        rows = list(session.scalars(statement.limit(2)))
    if len(rows) > 1:
        raise AdapterNotFound(
            f"version {prefix!r} of {name!r} is ambiguous; write more digits", param="version", code="version_ambiguous"
        )
    if not rows:
        raise AdapterNotFound(
            f"no version {prefix[:64]!r} of adapter {name[:80]!r} (write {MIN_PREFIX} or more hex digits)",
            param="version",
        )
    return rows[0]


def list_rows(session: Session, name: str | None, *, include_retired: bool) -> list[VersionRow]:
    """Versions by name, newest first."""
    statement = sa.select(VersionRow).order_by(VersionRow.name, VersionRow.sequence.desc())
    if name is not None:
        statement = statement.where(VersionRow.name == name)
    if not include_retired:
        statement = statement.where(VersionRow.state != State.RETIRED)
    return list(session.scalars(statement))


def read_snapshot(session: Session, root: Path) -> RegistrySnapshot:
    """All live versions and aliases, in one consistent view."""
    revision = session.scalars(sa.select(RevisionRow.revision)).one()
    rows = list_rows(session, None, include_retired=False)
    versions = {engine_name(row): to_version(row, root) for row in rows}
    newest: dict[str, AdapterVersion] = {}
    for version in versions.values():
        if version.name not in newest or version.state is State.CHAMPION:
            newest[version.name] = version
    targets: dict[str, dict[str, str]] = {agent: {} for agent in session.scalars(sa.select(AdapterRow.agent))}
    for alias in session.scalars(sa.select(AliasRow)):
        targets[alias.agent][alias.alias] = engine_name(alias.version)
    agents = {agent: AgentAliases(**aliases) for agent, aliases in sorted(targets.items())}
    return RegistrySnapshot(revision, MappingProxyType(versions), MappingProxyType(newest), MappingProxyType(agents))


def resolve(snapshot: RegistrySnapshot, ref: str) -> AdapterVersion:
    """What `name`, `name@version` (6 hex digits or more) or `name@champion` means now. Raises AdapterNotFound.

    Aliases belong to agents: in `name@champion`, `name` is an agent, or an adapter and then means its agent.
    """
    name, at, wanted = ref.partition("@")
    if not at:
        found = snapshot.newest.get(name)
    elif wanted in tuple(Alias):
        found = _by_alias(snapshot, name, Alias(wanted))
    else:
        found = snapshot.versions.get(ref) or _by_prefix(snapshot, name, wanted.lower())
    if found is None:
        raise not_found(snapshot, ref, name)
    return found


def not_found(snapshot: RegistrySnapshot, ref: str, name: str) -> AdapterNotFound:
    """The error for `ref`, which asks for `name`: an agent without adapters in service, or nothing that there is."""
    if name in snapshot.agents and name not in snapshot.newest:
        return AdapterNotFound(f"no adapter {ref[:160]!r}: agent {name!r} has none in service", param="name")
    near = nearest(snapshot, name)
    hint = f"; did you mean {', '.join(near)}?" if near else ""
    return AdapterNotFound(f"no adapter {ref[:160]!r}{hint}", param="name")


def nearest(snapshot: RegistrySnapshot, name: str, n: int = 3) -> list[str]:
    """Names of adapters and agents that look most like `name`, best first."""
    return difflib.get_close_matches(name[:128].lower(), sorted({*snapshot.newest, *snapshot.agents}), n, cutoff=0.4)


def alias_moves(session: Session, agent: str) -> tuple[AliasMove, ...]:
    """Every move of the agent's aliases, oldest first."""
    rows = session.scalars(sa.select(AliasEventRow).filter_by(agent=agent).order_by(AliasEventRow.id))
    return tuple(
        AliasMove(row.at, Alias(row.alias), engine_name(row.version) if row.version else None, row.action, row.actor)
        for row in rows
    )


def audit_entries(session: Session, limit: int, name: str | None) -> tuple[AuditEntry, ...]:
    """The latest changes, newest first."""
    statement = sa.select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
    if name is not None:
        statement = statement.where(AuditRow.name == name)
    rows: Iterable[AuditRow] = session.scalars(statement)
    return tuple(
        AuditEntry(row.at, row.actor, row.action, row.name, row.version, row.agent, row.detail) for row in rows
    )


def _by_alias(snapshot: RegistrySnapshot, name: str, alias: Alias) -> AdapterVersion | None:
    agent = name if name in snapshot.agents or name not in snapshot.newest else snapshot.newest[name].agent
    aliases = snapshot.agents.get(agent)
    target = None if aliases is None else getattr(aliases, alias.value)
    return None if target is None else snapshot.versions.get(target)


def _by_prefix(snapshot: RegistrySnapshot, name: str, prefix: str) -> AdapterVersion | None:
    if not HEX.fullmatch(prefix):
        return None
    found = [v for v in snapshot.versions.values() if v.name == name and v.digest.startswith(prefix)]
    if len(found) > 1:
        raise AdapterNotFound(
            f"version {prefix!r} of {name!r} is ambiguous; write more digits", param="name", code="version_ambiguous"
        )
    return found[0] if found else None

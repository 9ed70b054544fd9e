"""Changes of the registry: who may become what, and how aliases move.

    registered -> validated -> candidate -> canary -> champion -> retired

A version appears as `validated` (it is checked before it is stored). `promote` makes it champion from any live state,
the displaced champion becomes `candidate`; `rollback` walks the history of promotions back; `retire` is allowed from
any live state.
Each `Change` is one transaction: it takes the registry's lock, counts the revision up and writes the audit trail.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.orm import Session

from adapters_registry.database import Database
from adapters_registry.errors import AdapterNotFound, LifecycleError
from adapters_registry.model import VERSION_DIGITS, Alias, State
from adapters_registry.queries import alias_row, find_version, live_versions
from adapters_registry.tables import AdapterRow, AliasEventRow, AliasRow, AuditRow, RevisionRow, VersionRow

SETTABLE = {
    State.REGISTERED: {State.VALIDATED},
    State.VALIDATED: {State.CANDIDATE},
    State.CANDIDATE: {State.CANARY, State.VALIDATED},
    State.CANARY: {State.CANDIDATE},
}
"""what `set_state` allows; `champion` and `retired` have operations of their own"""


@dataclass(frozen=True, slots=True)
class NewVersion:
    """A checked adapter whose files are in place, about to become a row."""

    name: str
    agent: str
    base: str
    digest: str
    engine_id: int
    rank: int
    size_bytes: int
    target_modules: tuple[str, ...]
    source: str
    recorded_base: str | None


@contextmanager
def changing(database: Database, actor: str) -> Iterator[Change]:
    """One change, committed as a whole when the block ends."""
    with database.write() as session:
        yield Change(session, actor)


class Change:
    """An open write transaction that no other change runs beside."""

    def __init__(self, session: Session, actor: str) -> None:
        self.session = session
        self.actor = actor[:255]
        self.now = datetime.now(UTC)
        self._revision = session.scalars(sa.select(RevisionRow).with_for_update()).one()
        self._counted = False

    def record(self, action: str, version: VersionRow, detail: str = "") -> None:
        """Write the audit trail and let snapshots know that something changed."""
        if not self._counted:
            self._revision.revision += 1
            self._counted = True
        entry = AuditRow(
            at=self.now,
            actor=self.actor,
            action=action,
            name=version.name,
            version=version.version,
            agent=version.adapter.agent,
            detail=detail,
        )
        self.session.add(entry)
        self.session.flush()

    def add(self, new: NewVersion, alias: Alias | None, *, default_alias: bool, pin: bool) -> VersionRow:
        """Register a version; the same content again is the same version, and a retired one comes back.

        With `default_alias`, a version that is new or back becomes champion of an agent that has none.
        """
        check_binding(self.session.get(AdapterRow, new.name), new.name, new.agent, new.base)
        known = self.session.scalar(sa.select(VersionRow).filter_by(name=new.name, digest=new.digest))
        appears = known is None or known.state == State.RETIRED
        if appears:
            self._check_engine_id(new)
        version = known if known is not None else self._insert(new)
        if appears:
            version.state, version.retired_at, version.sequence = State.VALIDATED, None, self._revision.revision + 1
            self.record("register" if known is None else "restore", version, f"from {new.source}")
        if pin and not version.pinned:
            self.pin(version, pinned=True)
        if default_alias and appears and alias_row(self.session, new.agent, Alias.CHAMPION) is None:
            alias = Alias.CHAMPION
        if alias is not None:
            self.promote(version, alias)
        return version

    def promote(self, version: VersionRow, alias: Alias) -> None:
        """Point `alias` of the version's agent at it. Doing so again changes nothing."""
        self._point(version, alias, "promote", rollback_to=True)

    def rollback(self, agent: str) -> VersionRow:
        """Point the champion alias at the one before; repeated, walks further back. Passes over retired versions."""
        current = alias_row(self.session, agent, Alias.CHAMPION)
        statement = (
            sa.select(AliasEventRow)
            .filter_by(agent=agent, alias=Alias.CHAMPION, rollback_to=True)
            .order_by(AliasEventRow.id.desc())
        )
        for entry in self.session.scalars(statement):
            target = entry.version
            usable = target is not None and target.state != State.RETIRED
            if target is not None and usable and (current is None or target.id != current.version_id):
                self._point(target, Alias.CHAMPION, "rollback", rollback_to=False)
                return target
            # undone: a later rollback must not come back to it
            entry.rollback_to = False
        raise LifecycleError(
            f"agent {agent!r} has no earlier champion to return to", param="name", code="nothing_to_roll_back"
        )

    def retire(self, version: VersionRow) -> None:
        """Take a version out of service; aliases that point at it fall to nothing, its pin is lifted."""
        fallen = []
        for alias in Alias:
            row = alias_row(self.session, version.adapter.agent, alias)
            if row is not None and row.version_id == version.id:
                self._drop(row, "retire")
                fallen.append(str(alias))
        version.state, version.retired_at, version.pinned = State.RETIRED, self.now, False
        self.record("retire", version, f"was {' and '.join(fallen)}" if fallen else "")

    def pin(self, version: VersionRow, *, pinned: bool) -> None:
        """Pin or unpin. Doing so again changes nothing."""
        if version.state == State.RETIRED:
            raise _retired(version)
        if version.pinned != pinned:
            version.pinned = pinned
            self.record("pin" if pinned else "unpin", version)

    def set_state(self, version: VersionRow, state: State) -> None:
        """Move within `SETTABLE`. Setting the present state changes nothing."""
        if version.state == state:
            return
        if state not in SETTABLE.get(State(version.state), set()):
            raise LifecycleError(
                f"{version.name}@{version.version} is {version.state} and cannot be set to {state}",
                code="transition_not_allowed",
            )
        before, version.state = version.state, state
        self.record("state", version, f"{before} -> {state}")

    def find(self, name: str, version: str | None) -> VersionRow:
        """A live version of `name`, by default the newest. Raises AdapterNotFound, or LifecycleError when retired."""
        if version is not None:
            row = find_version(self.session, name, version)
            if row.state == State.RETIRED:
                raise _retired(row)
            return row
        live = live_versions(self.session, name)
        if live:
            return live[0]
        if self.session.get(AdapterRow, name) is None:
            raise AdapterNotFound(f"no adapter {name[:80]!r}", param="name")
        raise LifecycleError(f"every version of {name!r} is retired", param="name", code="retired")

    def _insert(self, new: NewVersion) -> VersionRow:
        adapter = self.session.get(AdapterRow, new.name)
        if adapter is None:
            adapter = AdapterRow(name=new.name, agent=new.agent, base=new.base, created_at=self.now)
            self.session.add(adapter)
            self.session.flush()
        version = VersionRow(
            adapter=adapter,
            digest=new.digest,
            version=new.digest[:VERSION_DIGITS],
            engine_id=new.engine_id,
            rank=new.rank,
            size_bytes=new.size_bytes,
            target_modules=list(new.target_modules),
            source=new.source,
            recorded_base=new.recorded_base,
            state=State.REGISTERED,
            pinned=False,
            sequence=0,
            created_at=self.now,
        )
        self.session.add(version)
        self.session.flush()
        return version

    def _check_engine_id(self, new: NewVersion) -> None:
        """Engines tell adapters apart by 31 bits, names by 48: two contents that share either cannot both be served."""
        same_id = (VersionRow.engine_id == new.engine_id) & (VersionRow.state != State.RETIRED)
        same_name = (VersionRow.name == new.name) & (VersionRow.version == new.digest[:VERSION_DIGITS])
        another = sa.or_(VersionRow.digest != new.digest, VersionRow.name != new.name)
        clash = self.session.scalar(sa.select(VersionRow).where(another, sa.or_(same_id, same_name)).limit(1))
        if clash is not None:
            raise LifecycleError(
                f"the adapter's engine id collides with that of {clash.name}@{clash.version}; retire that one first",
                param="source",
                code="engine_id_collision",
            )

    def _point(self, version: VersionRow, alias: Alias, action: str, *, rollback_to: bool) -> None:
        if version.state == State.RETIRED:
            raise _retired(version)
        agent = version.adapter.agent
        row = alias_row(self.session, agent, alias)
        if row is not None and row.version_id == version.id:
            return
        other = alias_row(self.session, agent, Alias.CHALLENGER if alias is Alias.CHAMPION else Alias.CHAMPION)
        if other is not None and other.version_id == version.id:
            if alias is Alias.CHALLENGER:
                raise LifecycleError(
                    f"{version.name}@{version.version} is the champion of {agent!r} and cannot challenge itself",
                    code="already_champion",
                )
            self._drop(other, action)
        displaced = row.version if row is not None else None
        if row is None:
            row = AliasRow(agent=agent, alias=alias, version=version)
            self.session.add(row)
        row.version = version
        if displaced is not None:
            displaced.state = State.CANDIDATE
        if alias is Alias.CHAMPION:
            version.state = State.CHAMPION
        elif version.state != State.CANARY:
            version.state = State.CANDIDATE
        self._log(agent, alias, version, action, rollback_to=rollback_to)
        before = f", displaced {displaced.name}@{displaced.version}" if displaced is not None else ""
        self.record(action, version, f"{alias} of {agent}{before}")

    def _drop(self, row: AliasRow, action: str) -> None:
        self._log(row.agent, Alias(row.alias), None, action, rollback_to=False)
        self.session.delete(row)
        self.session.flush()

    def _log(self, agent: str, alias: Alias, version: VersionRow | None, action: str, *, rollback_to: bool) -> None:
        event = AliasEventRow(
            agent=agent,
            alias=alias,
            version=version,
            action=action,
            actor=self.actor,
            at=self.now,
            rollback_to=rollback_to,
        )
        self.session.add(event)


def check_binding(adapter: AdapterRow | None, name: str, agent: str, base: str) -> None:
    """Refuse to register a known name for another agent or base."""
    if adapter is None:
        return
    for what, bound, wanted in (("agent", adapter.agent, agent), ("base", adapter.base, base)):
        if bound != wanted:
            raise LifecycleError(
                f"adapter {name!r} belongs to {what} {bound!r} and cannot be registered for {wanted!r}",
                param=what,
                code="name_taken",
            )


def _retired(version: VersionRow) -> LifecycleError:
    return LifecycleError(f"{version.name}@{version.version} is retired", param="name", code="retired")

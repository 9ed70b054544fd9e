"""Router versions: folders named after their content, rows that say whose they are, and the alias that moves.

A scope's alias points at one version, or at none: the rules. Every move is a row, the latest counts, and rolling back
walks back over the moves. A version lies in `home`/router/VERSION whichever scopes have it, and is never changed.
"""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Session

from adapters_registry.database import Database
from router.learned import RouterModel, RouterModelInvalid
from training.routing.errors import NothingToRollBack, VersionNotFound
from training.routing.tables import RouterMoveRow, RouterVersionRow, locked_state

log = logging.getLogger(__name__)

Origin = Literal["fitted", "installed"]
KEPT = 8
"""versions of a scope that can be returned to"""


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a scope; fields as in `RouterVersionRow`. `serves` tells whether it is the one that decides."""

    scope: str
    version: str
    created_at: datetime
    origin: str
    report: Mapping[str, Any]
    serves: bool


class Versions:
    """The versions under `home`. Thread-safe; several processes share them. Methods raise DatabaseError."""

    def __init__(self, database: Database, home: Path) -> None:
        self._database = database
        self._folder = home / "router"

    def add(self, scope: str, model: RouterModel, origin: Origin, report: Mapping[str, Any]) -> str:
        """Keep `model` as a version of `scope`, which does not serve yet; its name. Raises OSError."""
        self._publish(model)
        with self._database.write() as session:
            locked_state(session)
            if session.get(RouterVersionRow, (scope, model.version)) is None:
                now = datetime.now(UTC)
                session.add(
                    RouterVersionRow(
                        scope=scope, version=model.version, created_at=now, origin=origin, report=dict(report)
                    )
                )
        return model.version

    def promote(self, scope: str, version: str, *, actor: str, detail: str = "") -> None:
        """Let `version` decide for the scope from now on; doing so again changes nothing. Raises VersionNotFound."""
        with self._database.write() as session:
            state = locked_state(session)
            if session.get(RouterVersionRow, (scope, version)) is None or not self.path_of(version).is_dir():
                raise VersionNotFound(f"no router version {version} is kept for {scope!r}", param="version")
            if _serving(session, scope) != version:
                _move(session, scope, version, "promote", actor=actor, detail=detail)
                state.revision += 1
        self._prune(scope)

    def rollback(self, scope: str, *, actor: str) -> str | None:
        """Return to what served before, None being the rules; repeated, walks on back. Raises NothingToRollBack."""
        with self._database.write() as session:
            state = locked_state(session)
            served = _stack(session, scope)
            if not served:
                raise NothingToRollBack(f"no earlier router version served {scope!r}")
            before = served[-2] if len(served) > 1 else None
            _move(session, scope, before, "rollback", actor=actor)
            state.revision += 1
            return before

    def serving(self) -> dict[str, str]:
        """The version that serves, of each scope where it is not the rules; the latest move first."""
        with self._database.read() as session:
            latest = sa.select(sa.func.max(RouterMoveRow.id)).group_by(RouterMoveRow.scope)
            query = sa.select(RouterMoveRow).where(RouterMoveRow.id.in_(latest)).order_by(RouterMoveRow.id.desc())
            moves = session.scalars(query).all()
            return {move.scope: move.version for move in moves if move.version is not None}

    def list(self, scope: str | None = None) -> Sequence[Version]:
        """All versions, or a scope's, the newest first."""
        serving = self.serving()
        query = sa.select(RouterVersionRow).order_by(RouterVersionRow.created_at.desc())
        with self._database.read() as session:
            rows = session.scalars(query if scope is None else query.where(RouterVersionRow.scope == scope)).all()
        return [
            Version(
                row.scope, row.version, row.created_at, row.origin, row.report, serving.get(row.scope) == row.version
            )
            for row in rows
        ]

    def load(self, version: str) -> RouterModel:
        """Read a version. Raises RouterModelInvalid, also where its content is not what its name says."""
        model = RouterModel.load(self.path_of(version))
        if model.version != version:
            raise RouterModelInvalid(f"{self.path_of(version)} holds version {model.version}")
        return model

    def path_of(self, version: str) -> Path:
        """Where that version lies, or would."""
        return self._folder / version

    def _publish(self, model: RouterModel) -> None:
        final = self.path_of(model.version)
        if final.is_dir():
            return
        staged = self._folder / f".{uuid.uuid4().hex}"
        try:
            model.save(staged)
            staged.rename(final)
        except OSError:
            if not final.is_dir():  # or another process was first, with the same content
                raise
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def _prune(self, scope: str) -> None:
        """Drop the oldest versions of a scope; their folders too, where no scope has them."""
        with self._database.write() as session:
            locked_state(session)
            rows = session.scalars(
                sa.select(RouterVersionRow).filter_by(scope=scope).order_by(RouterVersionRow.created_at.desc())
            )
            old = [row for row in rows.all()[KEPT:] if row.version != _serving(session, scope)]
            for row in old:
                session.delete(row)
            session.flush()
            kept = set(session.scalars(sa.select(RouterVersionRow.version)))
        for row in old:
            if row.version not in kept:
                shutil.rmtree(self.path_of(row.version), ignore_errors=True)


def _move(session: Session, scope: str, version: str | None, action: str, *, actor: str, detail: str = "") -> None:
    session.add(
        RouterMoveRow(
            scope=scope, version=version, action=action, actor=actor[:255], at=datetime.now(UTC), detail=detail
        )
    )
    log.info("router version of %s: %s to %s by %s", scope, action, version or "the rules", actor)


def _serving(session: Session, scope: str) -> str | None:
    latest = sa.select(RouterMoveRow.version).filter_by(scope=scope).order_by(RouterMoveRow.id.desc()).limit(1)
    return session.scalar(latest)


def _stack(session: Session, scope: str) -> list[str]:
    """What has served and can be returned to, in the order in which it came; the last one serves."""
    kept = set(session.scalars(sa.select(RouterVersionRow.version).filter_by(scope=scope)))
    served: list[str] = []
    for move in session.scalars(sa.select(RouterMoveRow).filter_by(scope=scope).order_by(RouterMoveRow.id)):
        if move.action == "rollback":
            while served and served[-1] != move.version:
                served.pop()
        elif move.version is not None:
            served.append(move.version)
    reachable = [version for version in served[:-1] if version in kept] + served[-1:]
    return [version for version, _ in groupby(reachable)]  # what was between two of the same may be gone

"""The tables of what the router learns."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, Session, mapped_column

from adapters_registry.database import Base, UtcDateTime


class StateRow(Base):
    """One row. `revision` counts the changes that decisions depend on; `learning` is the setting that counted."""

    __tablename__ = "router_state"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    revision: Mapped[int]
    learning: Mapped[str] = mapped_column(sa.String(16))
    counted_until: Mapped[datetime | None] = mapped_column(UtcDateTime)


class OutcomeRow(Base):
    """One rewarded answer as it was counted: of a served case, or of a gate's question (`gate` is the job).

    `candidate` is `name@version` of an adapter, or the base's name; `expected` the probability that was predicted.
    """

    __tablename__ = "router_outcomes"
    __table_args__ = (sa.Index("ix_router_outcomes_scope_id", "scope", "id"),)

    id: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    case_id: Mapped[str] = mapped_column(sa.String(36), index=True)
    gate: Mapped[str | None] = mapped_column(sa.String(64), index=True)
    scope: Mapped[str] = mapped_column(sa.String(64))
    agent: Mapped[str] = mapped_column(sa.String(255))
    candidate: Mapped[str] = mapped_column(sa.String(255))
    base: Mapped[str] = mapped_column(sa.String(255))
    band: Mapped[int]
    reward: Mapped[float]
    expected: Mapped[float]


class EvidenceRow(Base):
    """Sums over the outcomes of one candidate in one band of difficulty."""

    __tablename__ = "router_evidence"

    scope: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    agent: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    candidate: Mapped[str] = mapped_column(sa.String(255), primary_key=True)
    band: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    cases: Mapped[int]
    reward: Mapped[float]
    expected: Mapped[float]


class ScopeRow(Base):
    """What a scope's outcomes were predicted with (`basis`), and when versions were last fitted from how many cases."""

    __tablename__ = "router_scopes"

    scope: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    basis: Mapped[str] = mapped_column(sa.String(64))
    fitted_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    fitted_cases: Mapped[int]


class RouterVersionRow(Base):
    """One router version of a scope; `origin` is `fitted` or `installed`, `report` what spoke for it."""

    __tablename__ = "router_versions"

    scope: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    version: Mapped[str] = mapped_column(sa.String(12), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    origin: Mapped[str] = mapped_column(sa.String(16))
    report: Mapped[dict[str, Any]] = mapped_column(sa.JSON)


class RouterMoveRow(Base):
    """One move of a scope's alias; the latest tells which version serves, None being the rules."""

    __tablename__ = "router_moves"

    id: Mapped[int] = mapped_column(primary_key=True)
    scope: Mapped[str] = mapped_column(sa.String(64), index=True)
    version: Mapped[str | None] = mapped_column(sa.String(12))
    action: Mapped[str] = mapped_column(sa.String(16))
    actor: Mapped[str] = mapped_column(sa.String(255))
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    detail: Mapped[str] = mapped_column(sa.Text)


def locked_state(session: Session) -> StateRow:
    """The state, which no other writer changes until the transaction ends."""
    return session.scalars(sa.select(StateRow).with_for_update()).one()

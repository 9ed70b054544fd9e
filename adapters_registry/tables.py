"""The registry's tables. Paths are not stored: they follow from name, digest and the store's root."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column, relationship

from adapters_registry.database import Base, UtcDateTime


class AdapterRow(Base):
    """An adapter's name, bound for good to one agent and one base."""

    __tablename__ = "adapters"

    name: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    agent: Mapped[str] = mapped_column(sa.String(64), index=True)
    base: Mapped[str] = mapped_column(sa.String(255))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)


class VersionRow(Base):
    """One version. `sequence` is the registry's revision at its latest registration, and orders versions by age."""

    __tablename__ = "adapter_versions"
    __table_args__ = (sa.UniqueConstraint("name", "digest"), sa.UniqueConstraint("name", "version"))

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.ForeignKey("adapters.name"))
    digest: Mapped[str] = mapped_column(sa.String(64))
    version: Mapped[str] = mapped_column(sa.String(12))
    engine_id: Mapped[int] = mapped_column(sa.BigInteger, index=True)
    rank: Mapped[int]
    size_bytes: Mapped[int] = mapped_column(sa.BigInteger)
    target_modules: Mapped[list[Any]] = mapped_column(sa.JSON)
    source: Mapped[str] = mapped_column(sa.Text)
    recorded_base: Mapped[str | None] = mapped_column(sa.Text)
    state: Mapped[str] = mapped_column(sa.String(16), index=True)
    pinned: Mapped[bool]
    sequence: Mapped[int] = mapped_column(sa.BigInteger)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    retired_at: Mapped[datetime | None] = mapped_column(UtcDateTime)

    adapter: Mapped[AdapterRow] = relationship(lazy="joined", innerjoin=True)


class AliasRow(Base):
    """Where an alias of an agent points; no row, no target."""

    __tablename__ = "agent_aliases"

    agent: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    alias: Mapped[str] = mapped_column(sa.String(16), primary_key=True)
    version_id: Mapped[int] = mapped_column(sa.ForeignKey("adapter_versions.id"))

    version: Mapped[VersionRow] = relationship(lazy="joined", innerjoin=True)


class AliasEventRow(Base):
    """One move of an alias. `rollback_to` marks those that a rollback may return to: promotions not yet undone."""

    __tablename__ = "alias_events"

    id: Mapped[int] = mapped_column(primary_key=True)
    agent: Mapped[str] = mapped_column(sa.String(64), index=True)
    alias: Mapped[str] = mapped_column(sa.String(16))
    version_id: Mapped[int | None] = mapped_column(sa.ForeignKey("adapter_versions.id"))
    action: Mapped[str] = mapped_column(sa.String(16))
    actor: Mapped[str] = mapped_column(sa.String(255))
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    rollback_to: Mapped[bool]

    version: Mapped[VersionRow | None] = relationship(lazy="joined")


class RevisionRow(Base):
    """One row that counts changes. Writers lock it first, so changes of the registry happen one after the other."""

    __tablename__ = "registry_revision"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    revision: Mapped[int] = mapped_column(sa.BigInteger)


class AuditRow(Base):
    """Who changed what, when. Never updated, never deleted."""

    __tablename__ = "audit_log"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    actor: Mapped[str] = mapped_column(sa.String(255))
    action: Mapped[str] = mapped_column(sa.String(16))
    name: Mapped[str] = mapped_column(sa.String(64), index=True)
    version: Mapped[str | None] = mapped_column(sa.String(12))
    agent: Mapped[str] = mapped_column(sa.String(64))
    detail: Mapped[str] = mapped_column(sa.Text)

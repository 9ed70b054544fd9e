"""The CaseBank's tables."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from adapters_registry.database import Base, UtcDateTime

_JSON = sa.JSON(none_as_null=True)


class CaseRow(Base):
    """One case. `repeat_of` names the case that stands for all with the same content; it alone is learned from.

    `signature` holds the MinHash of the prompt. `body_id` is the id inside the answer, `response_id` the request's.
    """

    __tablename__ = "cases"
    __table_args__ = (
        sa.Index("ix_cases_agent_id", "agent", "id"),
        sa.Index("ix_cases_adapter_created_at", "adapter", "created_at"),
        sa.Index("ix_cases_agent_content_hash", "agent", "content_hash"),
        sa.Index("ix_cases_agent_episode", "agent", "episode"),
    )

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime, index=True)
    source: Mapped[str] = mapped_column(sa.String(16))
    owner: Mapped[str | None] = mapped_column(sa.String(64))
    response_id: Mapped[str | None] = mapped_column(sa.String(255), index=True)
    body_id: Mapped[str | None] = mapped_column(sa.String(255), index=True)
    episode: Mapped[str | None] = mapped_column(sa.String(255))
    session: Mapped[str | None] = mapped_column(sa.String(255), index=True)
    user: Mapped[str | None] = mapped_column(sa.String(255), index=True)
    agent: Mapped[str | None] = mapped_column(sa.String(255))
    task_type: Mapped[str | None] = mapped_column(sa.String(255))
    messages: Mapped[list[dict[str, Any]]] = mapped_column(_JSON)
    tools: Mapped[list[Any] | None] = mapped_column(_JSON)
    adapter: Mapped[str | None] = mapped_column(sa.String(255), index=True)
    base: Mapped[str | None] = mapped_column(sa.String(255))
    sampling: Mapped[dict[str, Any]] = mapped_column(_JSON)
    response: Mapped[dict[str, Any] | None] = mapped_column(_JSON)
    correction: Mapped[str | None] = mapped_column(sa.Text)
    label: Mapped[str | None] = mapped_column(sa.Text)
    corrected: Mapped[bool]
    reward: Mapped[float | None]
    reward_source: Mapped[str | None] = mapped_column(sa.String(255))
    rewarded_at: Mapped[datetime | None] = mapped_column(UtcDateTime, index=True)
    reason: Mapped[str | None] = mapped_column(sa.String(64))
    difficulty: Mapped[float | None]
    prompt_tokens: Mapped[int | None]
    completion_tokens: Mapped[int | None]
    latency_s: Mapped[float | None]
    content_hash: Mapped[str] = mapped_column(sa.String(64))
    cluster: Mapped[str] = mapped_column(sa.String(36), index=True)
    split: Mapped[str] = mapped_column(sa.String(8))
    import_id: Mapped[str | None] = mapped_column(sa.String(36))
    repeat_of: Mapped[str | None] = mapped_column(sa.String(36), index=True)
    signature: Mapped[bytes] = mapped_column(sa.LargeBinary)


class BandRow(Base):
    """One band of a case's signature: cases that share a key may be near duplicates."""

    __tablename__ = "case_bands"
    __table_args__ = ({"sqlite_with_rowid": False},)

    key: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True, autoincrement=False)
    case_id: Mapped[str] = mapped_column(sa.String(36), primary_key=True)


class InboxRow(Base):
    """Served requests that have not become cases yet, as many as were written at once.

    `outcomes` is msgpack of a list of `training.casebank.served.Served`; `names` holds the ids by which clients know
    them, a line each.
    """

    __tablename__ = "case_inbox"

    id: Mapped[int] = mapped_column(primary_key=True)
    names: Mapped[str] = mapped_column(sa.Text)
    outcomes: Mapped[bytes] = mapped_column(sa.LargeBinary)


class ImportRow(Base):
    """One file that was imported."""

    __tablename__ = "case_imports"

    id: Mapped[str] = mapped_column(sa.String(36), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    agent: Mapped[str] = mapped_column(sa.String(255))
    file: Mapped[str] = mapped_column(sa.Text)
    format: Mapped[str] = mapped_column(sa.String(32))
    rows: Mapped[int]
    added: Mapped[int]
    duplicates: Mapped[int]
    bad: Mapped[int]

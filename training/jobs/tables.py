"""The tables of the queue."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from adapters_registry.database import Base, UtcDateTime


class JobRow(Base):
    """A job. `live_key` is set while the job is live, and unique: so there is one live job per agent and dataset.

    A worker holds the row until `lease_until`; afterwards anyone may take it. `charged_at` is when its cost was last
    counted up.
    """

    __tablename__ = "training_jobs"

    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    agent: Mapped[str] = mapped_column(sa.String(64), index=True)
    source: Mapped[str] = mapped_column(sa.String(255))
    live_key: Mapped[str | None] = mapped_column(sa.String(320), unique=True)
    state: Mapped[str] = mapped_column(sa.String(16), index=True)
    priority: Mapped[int]
    request: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    detail: Mapped[str] = mapped_column(sa.Text, default="")
    progress: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    result: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    error: Mapped[str | None] = mapped_column(sa.Text)
    error_code: Mapped[str | None] = mapped_column(sa.String(64))
    attempts: Mapped[int] = mapped_column(default=0)
    interruptions: Mapped[int] = mapped_column(default=0)
    cancelling: Mapped[bool] = mapped_column(default=False)
    worker: Mapped[str | None] = mapped_column(sa.String(64))
    host: Mapped[str | None] = mapped_column(sa.String(255))
    lease_until: Mapped[datetime | None] = mapped_column(UtcDateTime)
    gpus: Mapped[list[Any]] = mapped_column(sa.JSON)
    gpu_bytes: Mapped[int | None] = mapped_column(sa.BigInteger)
    rate_usd_hour: Mapped[float] = mapped_column(default=0.0)
    charged_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    seconds: Mapped[float] = mapped_column(default=0.0)
    cost_usd: Mapped[float] = mapped_column(default=0.0)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    not_before: Mapped[datetime] = mapped_column(UtcDateTime)
    started_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    finished_at: Mapped[datetime | None] = mapped_column(UtcDateTime)
    watch_until: Mapped[datetime | None] = mapped_column(UtcDateTime)


class JobEventRow(Base):
    """What happened to a job, in order."""

    __tablename__ = "training_events"

    id: Mapped[int] = mapped_column(primary_key=True)
    job: Mapped[str] = mapped_column(sa.ForeignKey("training_jobs.id"), index=True)
    at: Mapped[datetime] = mapped_column(UtcDateTime)
    level: Mapped[str] = mapped_column(sa.String(8))
    message: Mapped[str] = mapped_column(sa.Text)
    data: Mapped[dict[str, Any]] = mapped_column(sa.JSON)


class WorkerRow(Base):
    """A worker, while it lives. `started` is when its process began, as the kernel counts."""

    __tablename__ = "training_workers"

    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    host: Mapped[str] = mapped_column(sa.String(255))
    pid: Mapped[int]
    started: Mapped[int] = mapped_column(sa.BigInteger)
    endpoint: Mapped[str | None] = mapped_column(sa.String(255))
    started_at: Mapped[datetime] = mapped_column(UtcDateTime)
    seen_at: Mapped[datetime] = mapped_column(UtcDateTime)


class TriggerRow(Base):
    """A decision of the triggers; the same one again only moves `last_at`."""

    __tablename__ = "training_triggers"

    id: Mapped[int] = mapped_column(primary_key=True)
    agent: Mapped[str] = mapped_column(sa.String(64), index=True)
    action: Mapped[str] = mapped_column(sa.String(16))
    reason: Mapped[str] = mapped_column(sa.String(64))
    detail: Mapped[str] = mapped_column(sa.Text)
    job: Mapped[str | None] = mapped_column(sa.String(64))
    first_at: Mapped[datetime] = mapped_column(UtcDateTime)
    last_at: Mapped[datetime] = mapped_column(UtcDateTime)


class FileRow(Base):
    """An uploaded file; its content lies under `home`/files."""

    __tablename__ = "training_files"

    id: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    filename: Mapped[str] = mapped_column(sa.String(255))
    purpose: Mapped[str] = mapped_column(sa.String(32))
    bytes: Mapped[int] = mapped_column(sa.BigInteger)
    owner: Mapped[str] = mapped_column(sa.String(64))
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)

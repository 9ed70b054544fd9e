"""The datasets' tables: what a name stands for, so that it can be made again."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from adapters_registry.database import Base, UtcDateTime


class DatasetRow(Base):
    """One dataset. `purged_at` tells when its files were deleted."""

    __tablename__ = "datasets"

    name: Mapped[str] = mapped_column(sa.String(32), primary_key=True)
    digest: Mapped[str] = mapped_column(sa.String(64))
    agent: Mapped[str] = mapped_column(sa.String(255), index=True)
    config: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    report: Mapped[dict[str, Any]] = mapped_column(sa.JSON)
    created_at: Mapped[datetime] = mapped_column(UtcDateTime)
    purged_at: Mapped[datetime | None] = mapped_column(UtcDateTime)


class MemberRow(Base):
    """One row of a dataset. `given` is the text to learn where it is not the case's own answer, which never changes."""

    __tablename__ = "dataset_members"
    __table_args__ = ({"sqlite_with_rowid": False},)

    dataset: Mapped[str] = mapped_column(sa.ForeignKey("datasets.name"), primary_key=True)
    case_id: Mapped[str] = mapped_column(sa.String(36), primary_key=True, index=True)
    part: Mapped[str] = mapped_column(sa.String(16))
    given: Mapped[str | None] = mapped_column(sa.Text)
    reward: Mapped[float | None]
    row_hash: Mapped[str] = mapped_column(sa.String(32))

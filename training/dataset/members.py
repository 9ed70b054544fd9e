"""What the database knows of datasets: which cases each is made of, and which of them still exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from adapters_registry.database import Database
from training.casebank.tables import CaseRow
from training.dataset.errors import DatasetNotFound
from training.dataset.files import Dataset
from training.dataset.rows import Part
from training.dataset.tables import DatasetRow, MemberRow

GENERAL_ID = "general-%"
_BATCH = 5000


@dataclass(frozen=True, slots=True)
class Member:
    """A row of a dataset. `given` is the text to learn where it is not the case's own answer."""

    case_id: str
    part: Part
    given: str | None
    reward: float | None
    row_hash: str


@dataclass(frozen=True, slots=True)
class Known:
    """A dataset as the database knows it; `gone` counts its cases that were deleted."""

    name: str
    digest: str
    agent: str
    config: Mapping[str, Any]
    report: dict[str, Any]
    created_at: datetime
    purged_at: datetime | None
    rows: int
    gone: int


def remember(database: Database, dataset: Dataset, kept: Sequence[Member]) -> None:
    """Note what `dataset` is made of. Known ones stay as they are."""
    row = {
        "name": dataset.name,
        "digest": dataset.digest,
        "agent": dataset.agent,
        "config": dataset.config.model_dump(),
        "report": dict(dataset.report),
        "created_at": datetime.now(UTC),
    }
    try:
        with database.write() as session:
            if session.get(DatasetRow, dataset.name) is not None:
                return
            session.execute(sa.insert(DatasetRow), [row])
            for start in range(0, len(kept), _BATCH):
                session.execute(sa.insert(MemberRow), [_values(dataset.name, m) for m in kept[start : start + _BATCH]])
    except IntegrityError:  # another process built the same one meanwhile
        return


def find(database: Database, name: str) -> Known:
    """What is known of `name`. Raises DatasetNotFound."""
    with database.read() as session:
        row = session.get(DatasetRow, name)
        if row is None:
            raise DatasetNotFound(f"no dataset is named '{name[:64]}'", param="dataset")
        return _known(session, row)


def list_datasets(database: Database, agent: str | None = None, limit: int = 20) -> list[Known]:
    """The newest first."""
    query = sa.select(DatasetRow).order_by(DatasetRow.created_at.desc(), DatasetRow.name).limit(limit)
    with database.read() as session:
        rows = session.scalars(query if agent is None else query.filter_by(agent=agent))
        return [_known(session, row) for row in rows]


def of(database: Database, name: str) -> dict[str, Member]:
    """The rows of `name` by case id."""
    with database.read() as session:
        rows = session.scalars(sa.select(MemberRow).filter_by(dataset=name))
        return {
            row.case_id: Member(row.case_id, cast("Part", row.part), row.given, row.reward, row.row_hash)
            for row in rows
        }


def held_before(database: Database, agent: str) -> frozenset[str]:
    """Ids of all cases that any dataset of the agent held out."""
    query = (
        sa.select(MemberRow.case_id)
        .join(DatasetRow, DatasetRow.name == MemberRow.dataset)
        .where(DatasetRow.agent == agent, MemberRow.part == "holdout")
        .distinct()
    )
    with database.read() as session:
        return frozenset(session.scalars(query))


def incomplete(database: Database) -> list[str]:
    """Datasets with files whose cases are not all there any more."""
    query = (
        sa.select(MemberRow.dataset)
        .join(DatasetRow, DatasetRow.name == MemberRow.dataset)
        .where(DatasetRow.purged_at.is_(None), *_gone())
        .distinct()
    )
    with database.read() as session:
        return sorted(session.scalars(query))


def mark_purged(database: Database, names: Sequence[str]) -> None:
    """Note that their files are deleted, and forget the texts that deleted cases were given."""
    if not names:
        return
    with database.write() as session:
        at = datetime.now(UTC)
        session.execute(sa.update(DatasetRow).where(DatasetRow.name.in_(names)).values(purged_at=at))
        session.execute(sa.update(MemberRow).where(MemberRow.given.is_not(None), *_gone()).values(given=None))


def _gone() -> list[sa.ColumnElement[bool]]:
    exists = sa.select(CaseRow.id).where(CaseRow.id == MemberRow.case_id).exists()
    return [MemberRow.case_id.not_like(GENERAL_ID), ~exists]


def _known(session: Session, row: DatasetRow) -> Known:
    counted = sa.select(sa.func.count()).select_from(MemberRow).where(MemberRow.dataset == row.name)
    return Known(
        name=row.name,
        digest=row.digest,
        agent=row.agent,
        config=row.config,
        report=row.report,
        created_at=row.created_at,
        purged_at=row.purged_at,
        rows=session.scalar(counted) or 0,
        gone=session.scalar(counted.where(*_gone())) or 0,
    )


def _values(dataset: str, member: Member) -> dict[str, Any]:
    return {
        "dataset": dataset,
        "case_id": member.case_id,
        "part": member.part,
        "given": member.given,
        "reward": member.reward,
        "row_hash": member.row_hash,
    }

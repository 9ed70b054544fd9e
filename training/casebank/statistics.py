"""What the CaseBank holds, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from adapters_registry.database import Database
from training.casebank.case import storable_key
from training.casebank.eligibility import eligible
from training.casebank.tables import CaseRow


@dataclass(frozen=True, slots=True)
class AgentStatistics:
    """One agent's cases. `repeats` have the content of another; `eligible` may be learned from; rewards are 0 to 1.

    `win_rate` is the share of rewarded answers given here (not imported) that reach the threshold; None without any.
    """

    agent: str | None
    cases: int
    repeats: int
    rewarded: int
    eligible: int
    corrected: int
    holdout: int
    mean_reward: float | None
    win_rate: float | None
    last: datetime

    def to_dict(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class VersionStatistics:
    """What an agent's answers by one adapter version (None: the base) were worth since a moment."""

    adapter: str | None
    cases: int
    rewarded: int
    mean_reward: float | None
    win_rate: float | None


def by_agent(database: Database, agent: str | None, reward_threshold: float) -> list[AgentStatistics]:
    """One for each agent that has cases, by name; what no agent answered comes last, as agent None."""
    served = sa.and_(CaseRow.source == "served", CaseRow.reward.is_not(None))
    query = sa.select(
        CaseRow.agent,
        sa.func.count().label("cases"),
        _count(CaseRow.repeat_of.is_not(None)).label("repeats"),
        _count(CaseRow.reward.is_not(None)).label("rewarded"),
        _count(sa.and_(CaseRow.repeat_of.is_(None), eligible(reward_threshold))).label("eligible"),
        _count(CaseRow.corrected.is_(True)).label("corrected"),
        _count(CaseRow.split == "holdout").label("holdout"),
        sa.func.avg(CaseRow.reward).label("mean"),
        _count(served).label("judged"),
        _count(sa.and_(served, CaseRow.reward >= reward_threshold)).label("won"),
        sa.func.max(CaseRow.created_at, type_=CaseRow.created_at.type).label("last"),
    ).group_by(CaseRow.agent)
    if agent is not None:
        query = query.where(CaseRow.agent == storable_key(agent))
    with database.read() as session:
        rows = session.execute(query).all()
    found = [
        AgentStatistics(
            agent=row.agent,
            cases=row.cases,
            repeats=row.repeats,
            rewarded=row.rewarded,
            eligible=row.eligible,
            corrected=row.corrected,
            holdout=row.holdout,
            mean_reward=row.mean,
            win_rate=_share(row.won, row.judged),
            last=row.last,
        )
        for row in rows
    ]
    return sorted(found, key=lambda each: (each.agent is None, each.agent or ""))


def by_version(
    database: Database, agent: str, since: datetime | None, reward_threshold: float
) -> list[VersionStatistics]:
    """One for each version that answered for `agent`, by name."""
    query = (
        sa.select(
            CaseRow.adapter,
            sa.func.count().label("cases"),
            _count(CaseRow.reward.is_not(None)).label("rewarded"),
            sa.func.avg(CaseRow.reward).label("mean"),
            _count(CaseRow.reward >= reward_threshold).label("won"),
        )
        .where(CaseRow.agent == storable_key(agent), CaseRow.source == "served")
        .group_by(CaseRow.adapter)
    )
    if since is not None:
        query = query.where(CaseRow.created_at > since)
    with database.read() as session:
        rows = session.execute(query).all()
    found = [
        VersionStatistics(row.adapter, row.cases, row.rewarded, row.mean, _share(row.won, row.rewarded)) for row in rows
    ]
    return sorted(found, key=lambda each: each.adapter or "")


def _count(condition: sa.ColumnElement[bool]) -> sa.ColumnElement[int]:
    return sa.func.coalesce(sa.func.sum(sa.case((condition, 1), else_=0)), 0)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None

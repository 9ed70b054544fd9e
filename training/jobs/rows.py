"""From rows to what callers see, and the few writes that every change of a job shares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from training.jobs.errors import JobNotFound
from training.jobs.model import Job, JobEvent, JobRequest, JobState, Priority, TriggerView, WorkerView
from training.jobs.tables import JobEventRow, JobRow, TriggerRow, WorkerRow

CLAIM_LOCK = 0x6C6F72616A6F6273
"""key of PostgreSQL's advisory lock ("lorajobs" in ASCII); SQLite's write lock does the same"""


def now() -> datetime:
    """The time, as the tables keep it."""
    return datetime.now(UTC)


def lock_queue(session: Session) -> None:
    """Let one claim happen at a time, in whichever process, until the transaction ends."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(CLAIM_LOCK)))


def find_row(session: Session, job_id: str, *, lock: bool = False) -> JobRow:
    """The job's row. Raises JobNotFound."""
    statement = sa.select(JobRow).filter_by(id=job_id)
    row = session.scalar(statement.with_for_update() if lock else statement)
    if row is None:
        raise JobNotFound(f"no job {job_id[:80]!r}", param="job")
    return row


def claimable(at: datetime) -> sa.Select[Any]:
    """Queued jobs that are due, and running ones whose hold has run out, in the order of the queue."""
    due = sa.and_(JobRow.state == JobState.QUEUED, JobRow.not_before <= at)
    orphaned = sa.and_(JobRow.state.in_((JobState.RUNNING, JobState.GATING)), JobRow.lease_until <= at)
    return sa.select(JobRow).where(sa.or_(due, orphaned)).order_by(JobRow.priority, JobRow.created_at, JobRow.id)


def add_event(
    session: Session, job_id: str, message: str, level: str = "info", data: Mapping[str, Any] | None = None
) -> None:
    """Write down what happened."""
    session.add(JobEventRow(job=job_id, at=now(), level=level, message=message, data=dict(data or {})))


def charge(row: JobRow, until: datetime) -> None:
    """Count what the job has used since it was last asked."""
    if row.charged_at is not None and until > row.charged_at:
        spent = (until - row.charged_at).total_seconds()
        row.seconds += spent
        row.cost_usd += spent * row.rate_usd_hour / 3600
        row.charged_at = until


def let_go(row: JobRow) -> None:
    """End the lease: nobody works on the job, and what it held is free."""
    row.worker = row.host = row.lease_until = row.charged_at = row.gpu_bytes = None
    row.gpus = []
    row.rate_usd_hour = 0.0


def end(session: Session, row: JobRow, state: JobState, message: str, level: str = "info") -> None:
    """Move a job to one of the last states."""
    charge(row, now())
    let_go(row)
    row.state, row.live_key, row.finished_at, row.detail = state, None, now(), message
    add_event(session, row.id, message, level)


def to_job(row: JobRow) -> Job:
    """The row as callers see it."""
    return Job(
        id=row.id,
        agent=row.agent,
        source=row.source,
        state=JobState(row.state),
        priority=Priority(row.priority),
        request=_to_request(row),
        detail=row.detail,
        progress=MappingProxyType(dict(row.progress)),
        result=row.result,
        error=row.error,
        error_code=row.error_code,
        attempts=row.attempts,
        interruptions=row.interruptions,
        cancelling=row.cancelling,
        worker=row.worker,
        host=row.host,
        gpus=tuple(row.gpus),
        seconds=row.seconds,
        cost_usd=row.cost_usd,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        watch_until=row.watch_until,
    )


def from_request(request: JobRequest) -> dict[str, Any]:
    """The request as the row keeps it."""
    kept = asdict(_thawed(request))
    for stored_apart in ("agent", "source", "priority"):
        del kept[stored_apart]
    return kept


def to_event(row: JobEventRow) -> JobEvent:
    """The row as callers see it."""
    return JobEvent(row.id, row.job, row.at, row.level, row.message, row.data)


def to_worker(row: WorkerRow) -> WorkerView:
    """The row as callers see it."""
    return WorkerView(row.id, row.host, row.pid, row.endpoint, row.started_at, row.seen_at)


def to_trigger(row: TriggerRow) -> TriggerView:
    """The row as callers see it."""
    return TriggerView(row.agent, row.action, row.reason, row.detail, row.job, row.first_at, row.last_at)


def _to_request(row: JobRow) -> JobRequest:
    return JobRequest(agent=row.agent, source=row.source, priority=Priority(row.priority), **row.request)


def _thawed(request: JobRequest) -> JobRequest:
    """With plain dicts, which `asdict` can copy."""
    values = {name: getattr(request, name) for name in request.__slots__}
    return JobRequest(**values | {"overrides": dict(request.overrides), "metadata": dict(request.metadata)})

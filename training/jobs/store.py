"""The job table is the truth: what is wanted, what happened, what it cost. Any process may read and change it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from adapters_registry.database import Database
from training.jobs import rows
from training.jobs.errors import BudgetExceeded, JobConflict
from training.jobs.model import LIVE, Job, JobEvent, JobRequest, JobState, WorkerView, live_key, new_id
from training.jobs.tables import JobEventRow, JobRow, WorkerRow

BUDGET_DAYS = 30
WORKER_SEEN_S = 30.0
"""how long a worker that says nothing counts as alive"""


class JobStore:
    """Jobs, their events and their cost. Thread-safe; several processes share it.

    `budget_usd` is the most that one agent's jobs may cost in 30 days; None for no bound.
    """

    def __init__(self, database: Database, *, budget_usd: float | None = None) -> None:
        self.database = database
        self.budget_usd = budget_usd

    # -- asking ------------------------------------------------------------------------------------------------------

    def submit(self, request: JobRequest) -> Job:
        """Queue `request`, or return the live job of the same agent and dataset. Raises BudgetExceeded."""
        for _ in range(3):
            try:
                with self.database.write() as session:
                    return self._join(session, request) or self._insert(session, request)
            except IntegrityError:  # another process was first, and its job may have ended since
                continue
        raise JobConflict(f"jobs of agent {request.agent!r} come and go too fast; ask again")

    def _join(self, session: Session, request: JobRequest) -> Job | None:
        row = session.scalar(sa.select(JobRow).filter_by(live_key=live_key(request.agent, request.source)))
        if row is None:
            return None
        if request.priority < row.priority:
            row.priority = request.priority
            rows.add_event(session, row.id, f"priority raised to {request.priority.name}")
        rows.add_event(session, row.id, f"asked for again ({request.origin})")
        return rows.to_job(row)

    def _insert(self, session: Session, request: JobRequest) -> Job:
        self._check_budget(session, request.agent)
        at = rows.now()
        row = JobRow(
            id=new_id("ftjob"),
            agent=request.agent,
            source=request.source,
            live_key=live_key(request.agent, request.source),
            state=JobState.QUEUED,
            priority=request.priority,
            request=rows.from_request(request),
            detail="waiting for a worker",
            progress={},
            attempts=0,
            interruptions=0,
            cancelling=False,
            gpus=[],
            rate_usd_hour=0.0,
            seconds=0.0,
            cost_usd=0.0,
            created_at=at,
            not_before=at,
        )
        session.add(row)
        session.flush()
        why = f": {request.reason}" if request.reason else ""
        rows.add_event(session, row.id, f"queued by {request.origin} with priority {request.priority.name}{why}")
        return rows.to_job(row)

    def _check_budget(self, session: Session, agent: str) -> None:
        if self.budget_usd is None:
            return
        spent = _spent(session, agent)
        if spent >= self.budget_usd:
            raise BudgetExceeded(
                f"agent {agent!r} has spent ${spent:.2f} of ${self.budget_usd:.2f} in {BUDGET_DAYS} days "
                "(training.budget_usd)"
            )

    # -- reading -----------------------------------------------------------------------------------------------------

    def get(self, job_id: str) -> Job:
        """One job. Raises JobNotFound."""
        with self.database.read() as session:
            return rows.to_job(rows.find_row(session, job_id))

    def list(
        self,
        *,
        agent: str | None = None,
        states: Iterable[JobState] = (),
        after: str | None = None,
        limit: int = 100,
    ) -> tuple[Job, ...]:
        """Jobs, the newest first; those behind the job `after`."""
        statement = sa.select(JobRow).order_by(JobRow.created_at.desc(), JobRow.id.desc()).limit(limit)
        if agent is not None:
            statement = statement.where(JobRow.agent == agent)
        if wanted := tuple(states):
            statement = statement.where(JobRow.state.in_(wanted))
        with self.database.read() as session:
            if after is not None:
                pivot = rows.find_row(session, after)
                statement = statement.where(
                    sa.or_(
                        JobRow.created_at < pivot.created_at,
                        sa.and_(JobRow.created_at == pivot.created_at, JobRow.id < pivot.id),
                    )
                )
            return tuple(rows.to_job(row) for row in session.scalars(statement))

    def has_claimable(self) -> bool:
        """Whether a claim may find something: it is cheaper to ask than to lock the queue in vain."""
        with self.database.read() as session:
            return session.scalar(rows.claimable(rows.now()).limit(1)) is not None

    def watched(self) -> tuple[Job, ...]:
        """Jobs whose promoted version is watched."""
        with self.database.read() as session:
            found = session.scalars(sa.select(JobRow).where(JobRow.watch_until.is_not(None)))
            return tuple(rows.to_job(row) for row in found)

    def position(self, job_id: str) -> int | None:
        """How many queued jobs go first, plus one; None unless queued."""
        with self.database.read() as session:
            row = rows.find_row(session, job_id)
            if row.state != JobState.QUEUED:
                return None
            order = sa.select(JobRow.id).filter_by(state=JobState.QUEUED)
            queue = list(session.scalars(order.order_by(JobRow.priority, JobRow.created_at, JobRow.id)))
            return queue.index(row.id) + 1

    def events(self, job_id: str, *, after: int | None = None, limit: int = 1000) -> tuple[JobEvent, ...]:
        """What happened, oldest first; behind the event `after`. Raises JobNotFound."""
        statement = sa.select(JobEventRow).filter_by(job=job_id).order_by(JobEventRow.id).limit(limit)
        if after is not None:
            statement = statement.where(JobEventRow.id > after)
        with self.database.read() as session:
            rows.find_row(session, job_id)
            return tuple(rows.to_event(row) for row in session.scalars(statement))

    def spent(self, agent: str) -> float:
        """USD that the agent's jobs of the last 30 days have cost."""
        with self.database.read() as session:
            return _spent(session, agent)

    def is_over_budget(self, session: Session, agent: str) -> bool:
        """Whether the agent's jobs have cost more than they may."""
        return self.budget_usd is not None and _spent(session, agent) > self.budget_usd

    def workers(self) -> tuple[WorkerView, ...]:
        """Workers that have been heard of lately."""
        since = rows.now() - timedelta(seconds=WORKER_SEEN_S)
        with self.database.read() as session:
            found = session.scalars(sa.select(WorkerRow).where(WorkerRow.seen_at >= since).order_by(WorkerRow.id))
            return tuple(rows.to_worker(row) for row in found)

    # -- changing ----------------------------------------------------------------------------------------------------

    def cancel(self, job_id: str, *, actor: str = "local") -> Job:
        """End a job: at once while nobody works on it, else as soon as its worker sees it. Raises JobConflict."""
        with self.database.write() as session:
            row = rows.find_row(session, job_id, lock=True)
            if row.state not in LIVE:
                raise JobConflict(f"job {job_id} has {row.state} and cannot be cancelled", param="job")
            unheld = row.lease_until is None or row.lease_until <= rows.now()
            if unheld and row.state != JobState.CANARY:
                rows.end(session, row, JobState.CANCELLED, f"cancelled by {actor}")
            elif not row.cancelling:
                row.cancelling = True
                row.detail = "being cancelled"
                rows.add_event(session, row.id, f"{actor} asks to cancel")
            return rows.to_job(row)

    def retry(self, job_id: str, *, actor: str = "local") -> Job:
        """Queue a job that failed or was cancelled once more, from where it stopped. Raises JobConflict."""
        try:
            with self.database.write() as session:
                row = rows.find_row(session, job_id, lock=True)
                if row.state not in (JobState.FAILED, JobState.CANCELLED):
                    raise JobConflict(f"job {job_id} is {row.state}: only failed and cancelled ones can be retried")
                self._check_budget(session, row.agent)
                row.live_key = live_key(row.agent, row.source)
                row.state, row.detail = JobState.QUEUED, "waiting for a worker"
                row.error = row.error_code = row.finished_at = None
                row.attempts = row.interruptions = 0
                row.cancelling = False
                row.not_before = rows.now()
                rows.add_event(session, row.id, f"queued again by {actor}")
                session.flush()
                return rows.to_job(row)
        except IntegrityError:
            raise JobConflict(f"another job of the same agent and dataset is live; {job_id} stays as it is") from None

    def record(self, job_id: str, message: str, level: str = "info", data: Mapping[str, Any] | None = None) -> None:
        """Add an event."""
        with self.database.write() as session:
            rows.add_event(session, job_id, message, level, data)


def _spent(session: Session, agent: str) -> float:
    since = rows.now() - timedelta(days=BUDGET_DAYS)
    statement = sa.select(sa.func.sum(JobRow.cost_usd)).where(JobRow.agent == agent, JobRow.created_at >= since)
    return float(session.scalar(statement) or 0.0)

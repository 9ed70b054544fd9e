"""A worker's hold on jobs: claim, heartbeat, progress, the end. Every write checks that the hold is still there.

A lease that runs out frees its job, and so does the end of the process that held it, as soon as another worker of the
host looks: nothing has to be undone after kill -9.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from training.jobs import rows
from training.jobs.errors import StepFailed, Stopping
from training.jobs.gpus import Capacity, Held, Needs, Wait
from training.jobs.model import Job, JobState, new_id
from training.jobs.processes import is_running, start_time
from training.jobs.store import JobStore
from training.jobs.tables import JobRow, WorkerRow

MAX_INTERRUPTIONS = 20
"""how often a job may lose its worker without having got further, before it is held to be what kills them"""
RETRY_S = 5.0
LONGEST_RETRY_S = 600.0


class Order(Enum):
    """What the table tells a worker to do with a job that it holds."""

    GO_ON = "go on"
    CANCEL = "cancel"
    OVER_BUDGET = "over budget"


@dataclass(frozen=True, slots=True)
class Prices:
    """USD for an hour of one GPU, and for an hour of a job without one."""

    gpu_hour: float = 0.0
    cpu_hour: float = 0.0

    def of(self, gpus: int) -> float:
        """USD for an hour on so many GPUs."""
        return gpus * self.gpu_hour if gpus else self.cpu_hour


class Claims:
    """One worker's claims. Thread-safe. `lease_s` is how long a hold lasts without a heartbeat."""

    def __init__(
        self, store: JobStore, *, lease_s: float = 30.0, prices: Prices | None = None, endpoint: str | None = None
    ) -> None:
        self.store = store
        self.worker = new_id("worker")
        self.host = socket.gethostname()
        self._database = store.database
        self.lease_s = lease_s
        self._lease = timedelta(seconds=lease_s)
        self._prices = prices or Prices()
        self._endpoint = endpoint

    # -- the worker itself -------------------------------------------------------------------------------------------

    def announce(self) -> None:
        """Tell that this worker lives."""
        at = rows.now()
        with self._database.write() as session:
            row = session.get(WorkerRow, self.worker)
            if row is None:
                pid = os.getpid()
                row = WorkerRow(
                    id=self.worker, host=self.host, pid=pid, started=start_time(pid) or 0, started_at=at, seen_at=at
                )
                session.add(row)
            row.seen_at, row.endpoint = at, self._endpoint

    def leave(self) -> None:
        """Tell that this worker has ended."""
        with self._database.write() as session:
            session.execute(sa.delete(WorkerRow).filter_by(id=self.worker))

    def free_the_dead(self) -> list[str]:
        """Free what processes of this host held that have ended; the ids of those jobs."""
        with self._database.write() as session:
            rows.lock_queue(session)
            mine = session.scalars(sa.select(WorkerRow).filter_by(host=self.host))
            dead = [row for row in mine if row.id != self.worker and not is_running(row.pid, row.started)]
            freed = []
            for worker in dead:
                for row in session.scalars(sa.select(JobRow).filter_by(worker=worker.id)):
                    row.lease_until = rows.now()
                    freed.append(row.id)
                session.delete(worker)
            return freed

    # -- taking jobs -------------------------------------------------------------------------------------------------

    def claim(self, capacity: Capacity, needs: Callable[[Job], Needs]) -> Job | None:
        """Take the first job in the queue that fits here.

        One that must wait for room keeps those behind it waiting too, so that no small job starves a large one; one
        that never fits on this host does not.
        """
        with self._database.write() as session:
            rows.lock_queue(session)
            at = rows.now()
            held = self._held(session, at)
            for row in session.scalars(rows.claimable(at)):
                if self._gave_up(session, row):
                    continue
                wanted = needs(rows.to_job(row))
                place = capacity.place(wanted, held)
                if isinstance(place, Wait):
                    row.detail = f"waiting: {place.value}"
                    if place is Wait.BUSY:
                        return None
                    continue
                self._take(session, row, place, wanted.gpu_bytes, at)
                return rows.to_job(row)
        return None

    def take(self, job_id: str) -> Job | None:
        """Hold a job for one short step that needs no device; None if another worker holds it."""
        at = rows.now()
        with self._database.write() as session:
            row = rows.find_row(session, job_id, lock=True)
            if row.worker not in (None, self.worker) and row.lease_until is not None and row.lease_until > at:
                return None
            row.worker, row.host, row.lease_until = self.worker, self.host, at + self._lease
            return rows.to_job(row)

    def _held(self, session: Session, at: datetime) -> list[Held]:
        running = session.scalars(
            sa.select(JobRow).where(JobRow.host == self.host, JobRow.lease_until > at, JobRow.state == JobState.RUNNING)
        )
        return [Held(tuple(row.gpus), row.gpu_bytes) for row in running]

    def _gave_up(self, session: Session, row: JobRow) -> bool:
        if row.state == JobState.QUEUED:
            return False
        if row.cancelling:
            rows.end(session, row, JobState.CANCELLED, "cancelled")
            return True
        row.interruptions += 1
        if row.interruptions <= MAX_INTERRUPTIONS:
            return False
        row.error, row.error_code = f"its worker died {MAX_INTERRUPTIONS} times without progress", "worker_died"
        rows.end(session, row, JobState.FAILED, row.error, "error")
        return True

    def _take(self, session: Session, row: JobRow, gpus: tuple[int, ...], gpu_bytes: int | None, at: datetime) -> None:
        again = row.state != JobState.QUEUED
        row.worker, row.host, row.lease_until = self.worker, self.host, at + self._lease
        row.state, row.detail = JobState.RUNNING, "starting"
        row.gpus, row.gpu_bytes = list(gpus), gpu_bytes if gpus else None
        row.rate_usd_hour, row.charged_at = self._prices.of(len(gpus)), at
        row.started_at = row.started_at or at
        where = f"GPU {', '.join(map(str, gpus))}" if gpus else "CPU"
        message = f"taken up again after its worker ended, on {where}" if again else f"started on {where}"
        rows.add_event(session, row.id, f"{message} of {self.host}")

    # -- working -----------------------------------------------------------------------------------------------------

    def heartbeat(self, job_id: str) -> Order:
        """Keep the hold, count the cost. Raises Stopping if the hold is lost."""
        with self._holding(job_id) as (session, row):
            at = rows.now()
            rows.charge(row, at)
            row.lease_until = at + self._lease
            if row.cancelling:
                return Order.CANCEL
            session.flush()
            return Order.OVER_BUDGET if self.store.is_over_budget(session, row.agent) else Order.GO_ON

    def tell(self, job_id: str, detail: str) -> None:
        """Say what is being done."""
        with self._holding(job_id) as (_, row):
            row.detail = detail

    def keep(self, job_id: str, step: str, outcome: Mapping[str, Any], message: str = "") -> Job:
        """Remember what a step left behind, so that it is not done again."""
        with self._holding(job_id) as (session, row):
            row.progress = {**row.progress, step: dict(outcome)}
            row.attempts = row.interruptions = 0
            if message:
                rows.add_event(session, job_id, message)
            return rows.to_job(row)

    def move(self, job_id: str, state: JobState, detail: str, *, free_devices: bool = False) -> Job:
        """Change a live job's state; with `free_devices` others may use what it held."""
        with self._holding(job_id) as (session, row):
            row.state, row.detail = state, detail
            if free_devices:
                rows.charge(row, rows.now())
                row.gpus, row.gpu_bytes, row.rate_usd_hour = [], None, self._prices.of(0)
            rows.add_event(session, job_id, detail)
            return rows.to_job(row)

    def release(self, job_id: str, detail: str | None = None) -> None:
        """Let go of a job between two steps; it stays in its state."""
        with self._holding(job_id) as (_, row):
            rows.charge(row, rows.now())
            rows.let_go(row)
            row.detail = detail or row.detail

    def put_back(self, job_id: str, why: str) -> None:
        """Queue the job again, for any worker."""
        with self._holding(job_id) as (session, row):
            rows.charge(row, rows.now())
            rows.let_go(row)
            row.state, row.detail, row.not_before = JobState.QUEUED, why, rows.now()
            rows.add_event(session, job_id, why)

    # -- ending ------------------------------------------------------------------------------------------------------

    def fail(self, job_id: str, error: StepFailed, *, max_attempts: int, final: bool) -> Job:
        """Count a failure: the job is tried again later, or has failed."""
        with self._holding(job_id) as (session, row):
            row.attempts += 1
            row.error, row.error_code = error.message, error.code
            if final or row.attempts >= max_attempts:
                rows.end(session, row, JobState.FAILED, error.message, "error")
            else:
                delay = min(RETRY_S * 4 ** (row.attempts - 1), LONGEST_RETRY_S)
                rows.charge(row, rows.now())
                rows.let_go(row)
                row.state, row.detail = JobState.QUEUED, f"tried again in {delay:g} s: {error.message}"
                row.not_before = rows.now() + timedelta(seconds=delay)
                message = f"attempt {row.attempts} of {max_attempts} failed: {error.message}"
                rows.add_event(session, job_id, message, "warn")
            return rows.to_job(row)

    def finish(
        self, job_id: str, result: Mapping[str, Any], message: str, *, watch_until: datetime | None = None
    ) -> Job:
        """The job has done what it was for, whatever the verdict."""
        with self._holding(job_id) as (session, row):
            row.result, row.watch_until = dict(result), watch_until
            row.error = row.error_code = None
            rows.end(session, row, JobState.SUCCEEDED, message)
            return rows.to_job(row)

    def cancelled(self, job_id: str, why: str = "cancelled") -> Job:
        """The job has been stopped as it was asked."""
        with self._holding(job_id) as (session, row):
            rows.end(session, row, JobState.CANCELLED, why)
            return rows.to_job(row)

    def watched(self, job_id: str, message: str, *, level: str = "info", changes: Mapping[str, Any]) -> None:
        """End the watch over a promoted version; `changes` go into the job's result."""
        with self._holding(job_id) as (session, row):
            row.watch_until = None
            row.result = {**(row.result or {}), **changes}
            rows.let_go(row)
            rows.add_event(session, job_id, message, level)

    @contextmanager
    def _holding(self, job_id: str) -> Iterator[tuple[Session, JobRow]]:
        with self._database.write() as session:
            row = rows.find_row(session, job_id, lock=True)
            if row.worker != self.worker:
                raise Stopping(f"job {job_id} is no longer held by this worker")
            yield session, row

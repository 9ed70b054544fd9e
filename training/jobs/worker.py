"""The worker: looks for jobs and triggers, works on several jobs at once, moves canaries on, until it is told to end.

It owns nothing that it could not lose: kill -9 leaves rows with a lease and folders with checkpoints, and the next
worker goes on from there.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from adapters_registry import DatabaseError, RegistryError
from training.jobs.claims import Claims, Order
from training.jobs.errors import Cancelled, Hopeless, StepFailed, Stopping
from training.jobs.gpus import Capacity, Needs
from training.jobs.model import Job, JobState
from training.jobs.pipeline import Pipeline
from training.jobs.triggers import Triggers

log = logging.getLogger(__name__)

HEARTBEATS = 4
"""heartbeats in the time of a lease, at least"""
LONGEST_BEAT_S = 2.0
"""how soon a job hears that it is to be cancelled"""


@dataclass(frozen=True)
class Pace:
    """How often the worker looks, in seconds, and how often a job is tried."""

    poll_s: float = 5.0
    max_attempts: int = 3


class JobHold:
    """One job in work: its heartbeat says whether to go on."""

    def __init__(self, claims: Claims, job_id: str, stopping: threading.Event) -> None:
        self._claims = claims
        self._job_id = job_id
        self._stopping = stopping
        self._order = Order.GO_ON
        self._lost = False

    def beat(self) -> None:
        """Renew the lease and hear what is wanted."""
        try:
            self._order = self._claims.heartbeat(self._job_id)
        except Stopping:
            self._lost = True

    def check(self) -> None:
        """Raises Cancelled, Stopping, or Hopeless when the budget is used up."""
        if self._lost:
            raise Stopping("the hold on the job is lost")
        if self._order is Order.CANCEL:
            raise Cancelled("cancelled")
        if self._order is Order.OVER_BUDGET:
            raise Hopeless("the agent's budget is used up (training.budget_usd)", "budget_exceeded")
        if self._stopping.is_set():
            raise Stopping("the worker ends")


class Worker:
    """See the module. `run` blocks until `stop` is called from a signal handler or another thread."""

    def __init__(
        self,
        claims: Claims,
        pipeline: Pipeline,
        triggers: Triggers,
        capacity: Callable[[], Capacity],
        *,
        pace: Pace,
    ) -> None:
        self._claims = claims
        self._pipeline = pipeline
        self._triggers = triggers
        self._capacity = capacity
        self._pace = pace
        self._beat_s = min(claims.lease_s / HEARTBEATS, LONGEST_BEAT_S)
        self._stopping = threading.Event()
        self._ended = threading.Event()
        self._wake = threading.Event()
        self._holds: dict[str, JobHold] = {}
        self._threads: dict[str, threading.Thread] = {}

    def stop(self) -> None:
        """Let running trainers write a checkpoint, give the jobs back, and end."""
        self._stopping.set()
        self._wake.set()

    def run(self) -> None:
        """Work until stopped."""
        self._survive("announcing", self._claims.announce)
        beats = threading.Thread(target=self._beat, name="heartbeats", daemon=True)
        beats.start()
        try:
            while not self._stopping.is_set():
                self._survive("looking for work", self.step)
                self._wake.wait(self._pace.poll_s)
                self._wake.clear()
        finally:
            self._stopping.set()
            for thread in list(self._threads.values()):
                thread.join()
            self._ended.set()
            beats.join()  # or it might announce a worker that has left
            self._survive("leaving", self._claims.leave)

    def step(self) -> None:
        """Look once: triggers, jobs, canaries, champions under watch."""
        self._survive("freeing what dead workers held", self._claims.free_the_dead)
        self._survive("triggers", self._triggers.look)
        self._start_jobs()
        store = self._claims.store
        for job in store.list(states=[JobState.CANARY], limit=1000):
            self._survive(f"canary of {job.id}", partial(self._short_step, job, self._pipeline.canary_step))
        for job in store.watched():
            self._survive(f"watch of {job.id}", partial(self._short_step, job, self._pipeline.watch_step))

    def _start_jobs(self) -> None:
        capacity: Capacity | None = None
        while self._claims.store.has_claimable():
            capacity = capacity or self._capacity()
            job = self._claims.claim(capacity, self._needs)
            if job is None:
                return
            hold = self._holds[job.id] = JobHold(self._claims, job.id, self._stopping)
            thread = threading.Thread(target=self._work, args=(job, hold), name=job.id)
            self._threads[job.id] = thread
            thread.start()

    def _needs(self, job: Job) -> Needs:
        """What the job asks for; one whose devices' work is done, or that is about to fail, asks for nothing."""
        if "train" in job.progress:
            return Needs()
        try:
            return self._pipeline.needs(job)
        except StepFailed:
            return Needs()

    def _short_step(self, job: Job, step: Callable[[Job], object]) -> None:
        taken = self._claims.take(job.id)
        if taken is not None:
            step(taken)

    def _work(self, job: Job, hold: JobHold) -> None:
        try:
            self._run(job, hold)
        except Stopping:
            log.info("job %s has gone to another worker", job.id)
        except DatabaseError as error:  # the lease runs out, and the job is taken up again
            log.warning("job %s: %s", job.id, error.message)
        finally:
            self._holds.pop(job.id, None)
            self._threads.pop(job.id, None)
            self._wake.set()

    def _run(self, job: Job, hold: JobHold) -> None:
        claims, attempts = self._claims, self._pace.max_attempts
        try:
            self._pipeline.run(job, hold)
        except Cancelled:
            claims.cancelled(job.id)
        except Stopping as error:
            claims.put_back(job.id, f"{error}; it goes on later")
        except StepFailed as error:
            claims.fail(job.id, error, max_attempts=attempts, final=isinstance(error, Hopeless))
        except DatabaseError:
            raise
        except RegistryError as error:
            claims.fail(job.id, StepFailed(error.message, error.code), max_attempts=attempts, final=False)
        except Exception as error:  # a mistake of ours must not leave the job held for ever
            log.exception("job %s failed", job.id)
            failure = StepFailed(f"{type(error).__name__}: {error}", "internal_error")
            claims.fail(job.id, failure, max_attempts=attempts, final=False)

    def _beat(self) -> None:
        """Heartbeats go on while jobs are being given back: a trainer may take its time to write a checkpoint."""
        while not self._ended.wait(self._beat_s):
            self._survive("announcing", self._claims.announce)
            for hold in list(self._holds.values()):
                self._survive("heartbeat", hold.beat)

    def _survive(self, what: str, work: Callable[[], object]) -> None:
        """Do `work`; what goes wrong with the database is logged, and tried again at the next look."""
        try:
            work()
        except Stopping:
            log.info("%s: another worker was faster", what)
        except (RegistryError, StepFailed, OSError) as error:
            log.warning("%s: %s", what, error)

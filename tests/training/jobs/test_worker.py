"""The worker's loop, with a real queue, a real registry and scripted parts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from adapters_registry import AdapterRegistry
from tests.training.jobs.conftest import wish
from tests.training.jobs.parts import Advance, Scripted, broken
from tests.training.jobs.test_pipeline import registry, scripted
from training.jobs import JobState, JobStore
from training.jobs.claims import Claims
from training.jobs.errors import Hopeless
from training.jobs.gpus import Capacity
from training.jobs.pipeline import Pipeline
from training.jobs.tables import JobRow
from training.jobs.triggers import TriggerRules, Triggers
from training.jobs.worker import Pace, Worker

__all__ = ["registry", "scripted"]


def until(condition: Callable[[], object], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.02)


def make(store: JobStore, registry: AdapterRegistry, scripted: Scripted, home: Path, **pace: float) -> Worker:
    parts = scripted.parts()
    claims = Claims(store, lease_s=pace.pop("lease_s", 2.0))
    triggers = Triggers(store, registry, parts, TriggerRules(cooldown_s=0))
    pipeline = Pipeline(claims, registry, parts, home)
    return Worker(claims, pipeline, triggers, lambda: Capacity(cpu_jobs=2), pace=Pace(poll_s=0.05, max_attempts=2))


@contextmanager
def running(worker: Worker) -> Iterator[None]:
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield
    finally:
        worker.stop()
        thread.join()


def test_cases_become_a_champion_without_anybody_asking(
    store: JobStore, registry: AdapterRegistry, scripted: Scripted, home: Path
) -> None:
    scripted.eligible_ = 200
    with running(make(store, registry, scripted, home)):
        until(lambda: registry.snapshot().champion("legal"))
        scripted.eligible_ = 0
        assert len(store.workers()) == 1
        until(lambda: not store.list(states=[JobState.RUNNING, JobState.GATING]))
    assert store.workers() == ()
    assert store.list()[-1].result is not None


def test_a_canary_is_moved_on(store: JobStore, registry: AdapterRegistry, scripted: Scripted, home: Path) -> None:
    first, scripted.advance_ = store.submit(wish()), Advance("continue", "few rewards")
    with running(make(store, registry, scripted, home)):
        until(lambda: store.get(first.id).state is JobState.SUCCEEDED)
        scripted.seed = 2
        second = store.submit(wish())
        until(lambda: store.get(second.id).state is JobState.CANARY)
        until(lambda: store.get(second.id).detail == "canary: few rewards")
        scripted.advance_ = Advance("promote", "better")
        until(lambda: store.get(second.id).state is JobState.SUCCEEDED)


def test_a_failure_is_counted_and_a_hopeless_one_final(
    store: JobStore, registry: AdapterRegistry, scripted: Scripted, home: Path
) -> None:
    with running(make(store, registry, scripted, home)):
        scripted.fail["train"] = broken()
        job = store.submit(wish())
        until(lambda: store.get(job.id).attempts == 1)
        with store.database.write() as session:
            session.get_one(JobRow, job.id).not_before = job.created_at
        until(lambda: store.get(job.id).state is JobState.SUCCEEDED)
        scripted.fail["dataset"] = Hopeless("no cases", "dataset_empty")
        job = store.submit(wish("support"))
        until(lambda: store.get(job.id).state is JobState.FAILED)
        assert store.get(job.id).error_code == "dataset_empty"


def test_a_mistake_of_ours_fails_the_job_and_not_the_worker(
    store: JobStore, registry: AdapterRegistry, scripted: Scripted, home: Path
) -> None:
    with running(make(store, registry, scripted, home)):
        scripted.fail["configure"] = ZeroDivisionError("division by zero")
        job = store.submit(wish())
        until(lambda: store.get(job.id).attempts == 1)
        assert store.get(job.id).error == "ZeroDivisionError: division by zero"
        other = store.submit(wish("support"))
        until(lambda: store.get(other.id).state is JobState.SUCCEEDED)


def test_cancelling_and_stopping_reach_a_job_that_trains(
    store: JobStore, registry: AdapterRegistry, scripted: Scripted, home: Path
) -> None:
    scripted.while_training = lambda: time.sleep(0.4)
    cancelled, kept = store.submit(wish("a")), store.submit(wish("b"))
    with running(make(store, registry, scripted, home)):
        until(lambda: scripted.asked.count("train") == 2)  # both at once
        store.cancel(cancelled.id)
        until(lambda: store.get(cancelled.id).state is JobState.CANCELLED)
    back = store.get(kept.id)
    assert (back.state, back.worker, back.attempts) == (JobState.QUEUED, None, 0)
    assert "goes on later" in back.detail
    scripted.while_training = lambda: None
    with running(make(store, registry, scripted, home)):
        until(lambda: store.get(kept.id).state is JobState.SUCCEEDED)


def test_a_worker_that_lost_its_job_leaves_it_alone(
    store: JobStore, registry: AdapterRegistry, scripted: Scripted, home: Path
) -> None:
    scripted.while_training = lambda: time.sleep(0.3)
    job = store.submit(wish())
    with running(make(store, registry, scripted, home)):
        until(lambda: "train" in scripted.asked)
        with store.database.write() as session:
            session.get_one(JobRow, job.id).worker = "another"
        until(lambda: threading.active_count() and job.id not in {each.name for each in threading.enumerate()})
        assert store.get(job.id).worker == "another"

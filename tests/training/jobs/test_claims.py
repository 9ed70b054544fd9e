from __future__ import annotations

import time
from datetime import timedelta

import pytest

from tests.adapters_registry.processes import finish, start
from tests.training.jobs.claimants import claim_all, claim_and_die
from tests.training.jobs.conftest import wish
from training.jobs import JobState, JobStore, Priority
from training.jobs.claims import MAX_INTERRUPTIONS, Claims, Order, Prices
from training.jobs.errors import Hopeless, StepFailed, Stopping
from training.jobs.gpus import Capacity, Gpu, Needs
from training.jobs.model import Job
from training.jobs.tables import JobRow

GIB = 1 << 30
ANY = Capacity(cpu_jobs=100)


def nothing(_job: Job) -> Needs:
    return Needs()


def claimed(claims: Claims, capacity: Capacity = ANY) -> Job:
    job = claims.claim(capacity, nothing)
    assert job is not None
    return job


def let_expire(store: JobStore, job: Job) -> None:
    with store.database.write() as session:
        row = session.get_one(JobRow, job.id)
        assert row.lease_until is not None
        row.lease_until -= timedelta(hours=1)


def test_processes_share_the_queue_and_no_job_goes_twice(any_store: JobStore, database_url: str) -> None:
    made = {any_store.submit(wish(f"agent-{index}")).id for index in range(24)}
    workers = [start(claim_all, database_url) for _ in range(3)]
    for _, pipe in workers:
        assert pipe.recv() == "ready"
    for _, pipe in workers:
        pipe.send("go")
    taken = [job for _, pipe in workers for job in pipe.recv()]
    assert [finish(*worker) for worker in workers] == [0, 0, 0]
    assert len(taken) == len(made)
    assert set(taken) == made


def test_the_first_in_the_queue_is_claimed_first(any_store: JobStore) -> None:
    low, high = any_store.submit(wish("a", Priority.LOW)), any_store.submit(wish("b", Priority.HIGH))
    claims = Claims(any_store)
    assert [claimed(claims).id, claimed(claims).id] == [high.id, low.id]
    assert claims.claim(ANY, nothing) is None


def test_a_lease_that_ran_out_is_taken_up_and_its_former_holder_refused(any_store: JobStore) -> None:
    any_store.submit(wish())
    former, later = Claims(any_store), Claims(any_store)
    job = claimed(former)
    former.keep(job.id, "dataset", {"name": "ds-1"})
    assert later.claim(ANY, nothing) is None
    let_expire(any_store, job)
    again = claimed(later)
    assert (again.id, again.progress["dataset"], again.interruptions) == (job.id, {"name": "ds-1"}, 1)
    for write in (former.heartbeat, former.put_back, former.cancelled):
        with pytest.raises(Stopping):
            write(*(job.id, "why")[: 2 if write == former.put_back else 1])
    assert later.heartbeat(job.id) is Order.GO_ON


def test_what_a_killed_worker_held_is_free_at_once(any_store: JobStore, database_url: str) -> None:
    job = any_store.submit(wish())
    process, pipe = start(claim_and_die, database_url)
    assert pipe.recv() == job.id
    assert finish(process, pipe) < 0
    claims = Claims(any_store)
    assert claims.claim(ANY, nothing) is None
    assert claims.free_the_dead() == [job.id]
    assert claimed(claims).id == job.id
    claims.announce()
    assert [worker.id for worker in any_store.workers()] == [claims.worker]


def test_a_job_whose_workers_always_die_fails_in_the_end(store: JobStore) -> None:
    job = store.submit(wish())
    for _ in range(MAX_INTERRUPTIONS + 1):
        let_expire(store, claimed(Claims(store)))
    assert Claims(store).claim(ANY, nothing) is None
    ended = store.get(job.id)
    assert (ended.state, ended.error_code) == (JobState.FAILED, "worker_died")


def test_progress_forgives_interruptions_and_failures(store: JobStore, claims: Claims) -> None:
    job = store.submit(wish())
    claimed(claims)
    claims.fail(job.id, StepFailed("the disk is full"), max_attempts=3, final=False)
    with store.database.write() as session:
        session.get_one(JobRow, job.id).not_before -= timedelta(hours=1)
    claimed(claims)
    assert store.get(job.id).attempts == 1
    assert claims.keep(job.id, "dataset", {}).attempts == 0


def test_failures_are_tried_again_later_and_a_few_times(store: JobStore, claims: Claims) -> None:
    job = store.submit(wish())
    claimed(claims)
    failed = claims.fail(job.id, StepFailed("out of memory", "oom"), max_attempts=2, final=False)
    assert (failed.state, failed.attempts, failed.error_code) == (JobState.QUEUED, 1, "oom")
    assert claims.claim(ANY, nothing) is None  # not before its time
    with store.database.write() as session:
        session.get_one(JobRow, job.id).not_before -= timedelta(hours=1)
    claimed(claims)
    assert claims.fail(job.id, StepFailed("again"), max_attempts=2, final=False).state is JobState.FAILED


def test_a_hopeless_failure_is_final(store: JobStore, claims: Claims) -> None:
    job = store.submit(wish())
    claimed(claims)
    ended = claims.fail(job.id, Hopeless("no cases"), max_attempts=3, final=True)
    assert (ended.state, ended.error) == (JobState.FAILED, "no cases")
    assert store.submit(wish()).id != job.id


def test_cancelling_a_running_job_reaches_its_worker(any_store: JobStore) -> None:
    claims, job = Claims(any_store), any_store.submit(wish())
    claimed(claims)
    asked = any_store.cancel(job.id)
    assert (asked.state, asked.cancelling) == (JobState.RUNNING, True)
    assert claims.heartbeat(job.id) is Order.CANCEL
    assert claims.cancelled(job.id).state is JobState.CANCELLED


def test_a_cancelled_job_of_a_dead_worker_ends(store: JobStore, claims: Claims) -> None:
    job = store.submit(wish())
    claimed(claims)
    store.cancel(job.id)
    let_expire(store, job)
    assert Claims(store).claim(ANY, nothing) is None
    assert store.get(job.id).state is JobState.CANCELLED


def test_time_is_charged_by_the_hour_of_what_is_held(store: JobStore) -> None:
    claims = Claims(store, prices=Prices(gpu_hour=3600.0, cpu_hour=360.0))
    job = store.submit(wish())
    gpus = Capacity((Gpu(0, 8 * GIB, 8 * GIB), Gpu(1, 8 * GIB, 8 * GIB)))
    assert claims.claim(gpus, lambda _: Needs(gpus=2)) is not None
    time.sleep(0.05)
    claims.heartbeat(job.id)
    spent = store.get(job.id)
    assert spent.seconds >= 0.05
    assert spent.cost_usd == pytest.approx(2 * spent.seconds)
    claims.move(job.id, JobState.GATING, "judging", free_devices=True)
    before = store.get(job.id)
    assert before.gpus == ()
    time.sleep(0.05)
    ended = claims.finish(job.id, {"promoted": False}, "done")
    assert ended.cost_usd - before.cost_usd == pytest.approx((ended.seconds - before.seconds) / 10)
    assert store.spent("legal") == pytest.approx(ended.cost_usd)


def test_a_budget_ends_a_running_job(store: JobStore) -> None:
    store.budget_usd = 0.01
    claims = Claims(store, prices=Prices(cpu_hour=3600.0))
    job = store.submit(wish())
    claimed(claims)
    time.sleep(0.05)
    assert claims.heartbeat(job.id) is Order.OVER_BUDGET


def test_two_jobs_run_at_once_where_they_fit(store: JobStore, claims: Claims) -> None:
    for index in range(3):
        store.submit(wish(f"agent-{index}"))
    cards = Capacity((Gpu(0, 8 * GIB, 8 * GIB), Gpu(1, 8 * GIB, 8 * GIB)))
    first, second = (claims.claim(cards, lambda _: Needs(1, 6 * GIB)) for _ in range(2))
    assert first is not None
    assert second is not None
    assert {first.gpus, second.gpus} == {(0,), (1,)}
    assert claims.claim(cards, lambda _: Needs(1, 6 * GIB)) is None
    claims.put_back(first.id, "later")
    assert claims.claim(cards, lambda _: Needs(1, 6 * GIB)) is not None


def test_no_small_job_overtakes_a_large_one_that_waits_for_room(store: JobStore, claims: Claims) -> None:
    running, large, small = (store.submit(wish(agent)) for agent in ("running", "large", "small"))
    cards = Capacity((Gpu(0, 8 * GIB, 8 * GIB), Gpu(1, 8 * GIB, 8 * GIB)))
    sizes = {running.id: Needs(1), large.id: Needs(2), small.id: Needs(1)}
    assert claims.claim(cards, lambda job: sizes[job.id]) is not None
    assert claims.claim(cards, lambda job: sizes[job.id]) is None
    assert "waiting" in store.get(large.id).detail
    sizes[large.id] = Needs(5)  # one that never fits here blocks nobody
    found = claims.claim(cards, lambda job: sizes[job.id])
    assert found is not None
    assert found.id == small.id


def test_a_canary_is_held_for_a_step_by_one_worker_only(store: JobStore, claims: Claims) -> None:
    job = store.submit(wish())
    claimed(claims)
    claims.move(job.id, JobState.CANARY, "canary")
    claims.release(job.id)
    assert claims.claim(ANY, nothing) is None
    other = Claims(store)
    assert other.take(job.id) is not None
    assert claims.take(job.id) is None
    other.release(job.id)
    assert claims.take(job.id) is not None

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.training.jobs.conftest import wish
from training.jobs import BudgetExceeded, JobConflict, JobNotFound, JobState, JobStore, Priority
from training.jobs.claims import Claims
from training.jobs.gpus import Capacity, Needs


def test_asking_again_joins_the_live_job(any_store: JobStore) -> None:
    first = any_store.submit(wish())
    again = any_store.submit(wish(priority=Priority.HIGH))
    assert again.id == first.id
    assert any_store.get(first.id).priority is Priority.HIGH
    assert any_store.submit(wish("support")).id != first.id
    any_store.cancel(first.id)
    assert any_store.submit(wish()).id != first.id


def test_asking_from_many_threads_makes_one_job(any_store: JobStore) -> None:
    with ThreadPoolExecutor(6) as pool:
        ids = set(pool.map(lambda _: any_store.submit(wish()).id, range(12)))
    assert len(ids) == 1


def test_the_queue_is_by_priority_then_by_age(store: JobStore) -> None:
    order = [Priority.NORMAL, Priority.LOW, Priority.CRITICAL, Priority.NORMAL, Priority.HIGH]
    jobs = [store.submit(wish(f"agent-{index}", priority)) for index, priority in enumerate(order)]
    assert [store.position(job.id) for job in jobs] == [3, 5, 1, 4, 2]


def test_jobs_are_listed_newest_first_in_pages(store: JobStore) -> None:
    made = [store.submit(wish(f"agent-{index}")).id for index in range(5)]
    first = store.list(limit=2)
    second = store.list(limit=2, after=first[-1].id)
    assert [job.id for job in (*first, *second)] == made[:0:-1]
    assert [job.agent for job in store.list(agent="agent-3")] == ["agent-3"]
    assert store.list(states=[JobState.RUNNING]) == ()


def test_a_queued_job_is_cancelled_at_once_and_no_longer_claimed(any_store: JobStore) -> None:
    job = any_store.submit(wish())
    assert any_store.cancel(job.id).state is JobState.CANCELLED
    assert Claims(any_store).claim(Capacity(), lambda _: Needs()) is None
    with pytest.raises(JobConflict, match="cancelled"):
        any_store.cancel(job.id)


def test_a_cancelled_job_can_be_queued_again_unless_another_is_live(store: JobStore) -> None:
    job = store.submit(wish())
    with pytest.raises(JobConflict, match="is queued"):
        store.retry(job.id)
    store.cancel(job.id)
    other = store.submit(wish())
    with pytest.raises(JobConflict, match="is live"):
        store.retry(job.id)
    store.cancel(other.id)
    assert store.retry(job.id).state is JobState.QUEUED


def test_what_happened_is_told_in_order(store: JobStore) -> None:
    job = store.submit(wish(reason="120 new cases"))
    store.record(job.id, "step 1 of 2", data={"loss": 0.5})
    store.cancel(job.id)
    events = store.events(job.id)
    assert [event.message for event in events] == [
        "queued by cli with priority NORMAL: 120 new cases",
        "step 1 of 2",
        "cancelled by local",
    ]
    assert events[1].data == {"loss": 0.5}
    assert store.events(job.id, after=events[0].id, limit=1) == (events[1],)


def test_unknown_jobs_are_told(store: JobStore) -> None:
    for ask in (store.get, store.cancel, store.retry, store.events, store.position):
        with pytest.raises(JobNotFound, match="ftjob-none"):
            ask("ftjob-none")


def test_a_budget_refuses_further_jobs_of_its_agent(any_store: JobStore) -> None:
    from training.jobs.tables import JobRow

    job = any_store.submit(wish())
    any_store.cancel(job.id)
    with any_store.database.write() as session:
        session.get_one(JobRow, job.id).cost_usd = 1.5
    any_store.budget_usd = 1.5
    assert any_store.spent("legal") == 1.5
    with pytest.raises(BudgetExceeded, match=r"\$1.50 of \$1.50"):
        any_store.submit(wish())
    with pytest.raises(BudgetExceeded):
        any_store.retry(job.id)
    any_store.submit(wish("support"))

from __future__ import annotations

from pathlib import Path

import pytest

from adapters_registry import AdapterRegistry, Database
from tests.training.jobs.conftest import wish
from tests.training.jobs.parts import BASE, Scripted
from tests.training.jobs.test_pipeline import pipeline, registry, run, scripted
from training.jobs import JobState, JobStore
from training.jobs.claims import Claims
from training.jobs.model import TriggerView
from training.jobs.parts import Base, Standing
from training.jobs.pipeline import Pipeline
from training.jobs.tables import JobRow
from training.jobs.triggers import TriggerRules, Triggers, decisions

__all__ = ["pipeline", "registry", "scripted"]

NOW = TriggerRules(min_cases=100, growth=0.2, cooldown_s=0)


@pytest.fixture
def trained(pipeline: Pipeline, claims: Claims) -> JobStore:
    """A queue whose one job has made a champion."""
    run(pipeline, claims)
    return claims.store


def look(store: JobStore, registry: AdapterRegistry, scripted: Scripted, rules: TriggerRules = NOW) -> TriggerView:
    Triggers(store, registry, scripted.parts(), rules).look()
    return decisions(store, 1)[0]


def test_enough_new_cases_start_a_job(store: JobStore, registry: AdapterRegistry, scripted: Scripted) -> None:
    scripted.eligible_ = 99
    assert look(store, registry, scripted).detail == "99 of 100 new cases"
    assert store.list() == ()
    scripted.eligible_ = 100
    decided = look(store, registry, scripted)
    (job,) = store.list()
    assert (decided.action, decided.reason, decided.job) == ("start", "growth", job.id)
    assert (job.agent, job.source, job.request.origin) == ("legal", "casebank:legal", "trigger")


def test_a_live_job_is_not_joined_by_a_trigger(store: JobStore, registry: AdapterRegistry, scripted: Scripted) -> None:
    job = store.submit(wish())
    scripted.eligible_ = 1000
    Triggers(store, registry, scripted.parts(), NOW).look()
    assert len(store.events(job.id)) == 1


def test_growth_is_measured_on_the_last_dataset(
    store: JobStore, registry: AdapterRegistry, scripted: Scripted, pipeline: Pipeline, claims: Claims
) -> None:
    run(pipeline, claims)  # on 110 cases
    scripted.eligible_ = 21
    rules = TriggerRules(min_cases=1, growth=0.2, cooldown_s=0)
    assert look(store, registry, scripted, rules).detail == "21 of 22 new cases"
    scripted.eligible_ = 22
    assert look(store, registry, scripted, rules).action == "start"


def test_a_cooldown_a_dry_run_and_a_budget_hold_it_back(
    store: JobStore, registry: AdapterRegistry, scripted: Scripted, pipeline: Pipeline, claims: Claims
) -> None:
    job = run(pipeline, claims)
    scripted.eligible_ = 500
    decided = look(store, registry, scripted, TriggerRules(cooldown_s=3600))
    assert (decided.action, decided.reason) == ("wait", "cooldown")
    decided = look(store, registry, scripted, TriggerRules(cooldown_s=0, dry_run=True))
    assert (decided.action, decided.reason) == ("dry_run", "growth")
    store.budget_usd = 1.0
    with store.database.write() as session:
        session.get_one(JobRow, job.id).cost_usd = 2.0
    assert look(store, registry, scripted).reason == "budget"
    assert [each.state for each in store.list()] == [JobState.SUCCEEDED]


@pytest.mark.parametrize(
    ("base", "reason"),
    [
        (Base(BASE.name, BASE.source, 16, weights="w2", template="t1"), "base_changed"),
        (Base(BASE.name, BASE.source, 16, weights="w1", template="t2"), "template_changed"),
    ],
)
def test_a_changed_base_or_template_starts_a_job(
    registry: AdapterRegistry, scripted: Scripted, trained: JobStore, base: Base, reason: str
) -> None:
    assert look(trained, registry, scripted).action == "wait"
    scripted.base = base
    assert look(trained, registry, scripted).reason == reason


@pytest.mark.parametrize(
    ("standing", "action"),
    [
        (Standing(29, 0.1), "wait"),  # too few to tell
        (Standing(200, 0.88), "wait"),  # the gate measured 0.9
        (Standing(200, 0.8), "start"),
        (Standing(30, 0.0), "start"),
    ],
)
def test_a_champion_below_its_gates_figure_starts_a_job(
    registry: AdapterRegistry, scripted: Scripted, trained: JobStore, standing: Standing, action: str
) -> None:
    scripted.standing_ = standing
    assert look(trained, registry, scripted).action == action


def test_the_same_decision_is_kept_once(store: JobStore, registry: AdapterRegistry, scripted: Scripted) -> None:
    for count in (1, 2, 3):
        scripted.eligible_ = count
        look(store, registry, scripted)
    (decided,) = decisions(store)
    assert decided.detail == "3 of 100 new cases"
    assert decided.last_at > decided.first_at


def test_agents_that_are_not_wanted_are_left_alone(
    store: JobStore, registry: AdapterRegistry, scripted: Scripted
) -> None:
    scripted.eligible_ = 1000
    Triggers(store, registry, scripted.parts(), NOW, lambda agent: agent != "legal").look()
    assert store.list() == ()


def test_cases_are_counted_in_the_casebank(database: Database, tmp_path: Path) -> None:
    from training.casebank import Case, CaseBank
    from training.jobs.join import BankCases
    from training.jobs.rows import now

    bank = CaseBank(database)
    cases = BankCases(bank, reward_threshold=0.7)
    for index, reward in enumerate((1.0, 0.9, 0.2)):
        answer = {"role": "assistant", "content": f"answer {index}"}
        bank.add([Case([{"role": "user", "content": f"question {index} about law"}], "legal", answer, reward=reward)])
    assert (list(cases.agents()), cases.eligible("legal")) == (["legal"], 2)
    assert cases.eligible("legal", now()) == 0


def test_the_same_cases_do_not_start_a_job_again_after_a_failure(
    store: JobStore, registry: AdapterRegistry, scripted: Scripted
) -> None:
    asked_since = []

    def eligible(agent: str, since: object = None) -> int:
        asked_since.append(since)
        return 0 if since else 200

    scripted.eligible = eligible  # type: ignore[method-assign]
    job = look(store, registry, scripted).job
    assert job is not None
    store.cancel(job)
    assert look(store, registry, scripted).action == "wait"
    assert asked_since == [None, store.get(job).created_at]

"""The steps from a claimed job to a verdict, on a real queue and a real registry."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from adapters_registry import AdapterRegistry, BaseModelSpec, Database, State
from tests.adapters_registry.build import write_adapter, write_base
from tests.training.jobs.conftest import wish
from tests.training.jobs.parts import Advance, Scripted, broken
from training.jobs import Job, JobState, JobStore
from training.jobs.claims import Claims
from training.jobs.errors import Cancelled, Hopeless, StepFailed
from training.jobs.gpus import Capacity, Needs
from training.jobs.pipeline import Pipeline
from training.jobs.tables import JobRow


class Free:
    """A hold that nobody disturbs."""

    def check(self) -> None:
        return


@pytest.fixture
def registry(database: Database, tmp_path: Path, home: Path) -> AdapterRegistry:
    base = BaseModelSpec.from_folder(write_base(tmp_path / "base"), "tiny-base", ["acme/Tiny-Base"], max_lora_rank=16)
    return AdapterRegistry(database, home, bases={base.name: base})


@pytest.fixture
def scripted(tmp_path: Path) -> Scripted:
    return Scripted(tmp_path)


@pytest.fixture
def pipeline(claims: Claims, registry: AdapterRegistry, scripted: Scripted, home: Path) -> Pipeline:
    return Pipeline(claims, registry, scripted.parts(), home)


def run(pipeline: Pipeline, claims: Claims, agent: str = "legal") -> Job:
    """A whole job, up to its end or its canary."""
    claims.store.submit(wish(agent))
    return pipeline.run(claim(claims), Free())


def claim(claims: Claims) -> Job:
    job = claims.claim(Capacity(cpu_jobs=9), lambda _: Needs())
    assert job is not None
    return job


def step(pipeline: Pipeline, claims: Claims, job: Job) -> Job:
    """One look at a canary."""
    taken = claims.take(job.id)
    assert taken is not None
    return pipeline.canary_step(taken)


def test_the_first_adapter_that_passes_is_champion_at_once(
    pipeline: Pipeline, claims: Claims, registry: AdapterRegistry, scripted: Scripted
) -> None:
    job = run(pipeline, claims)
    assert job.state is JobState.SUCCEEDED
    champion = registry.snapshot().champion("legal")
    assert champion is not None
    assert job.result is not None
    assert (job.result["version"], job.result["promoted"]) == (champion.version, True)
    assert job.result["gate"]["passed"]
    assert scripted.contest is not None
    assert (scripted.contest.candidate, scripted.contest.champion) == (champion.engine_name, None)
    assert scripted.asked == ["dataset", "configure", "train", "wait", "judge"]


def test_while_it_is_judged_a_candidate_is_not_served(
    pipeline: Pipeline, claims: Claims, registry: AdapterRegistry, scripted: Scripted
) -> None:
    scripted.fail["judge"] = broken()
    with pytest.raises(StepFailed):
        run(pipeline, claims)
    snapshot = registry.snapshot()
    assert snapshot.champion("legal") is None
    assert [version.state for version in snapshot.versions.values()] == [State.CANDIDATE]


def test_a_refused_candidate_is_retired_and_the_job_is_finished(
    pipeline: Pipeline, claims: Claims, registry: AdapterRegistry, scripted: Scripted
) -> None:
    scripted.passed = False
    job = run(pipeline, claims)
    assert job.state is JobState.SUCCEEDED
    assert job.result is not None
    assert (job.result["promoted"], job.result["gate"]["passed"]) == (False, False)
    assert registry.snapshot().versions == {}
    assert "no sure gain" in job.detail


@pytest.mark.parametrize("failing", ["dataset", "configure", "train", "wait", "judge"])
def test_a_job_goes_on_after_the_step_that_was_done_last(
    pipeline: Pipeline, claims: Claims, registry: AdapterRegistry, scripted: Scripted, failing: str
) -> None:
    scripted.fail[failing] = broken()
    with pytest.raises(StepFailed):
        run(pipeline, claims)
    (job,) = claims.store.list()
    claims.put_back(job.id, "again")
    before = len(scripted.asked)
    assert pipeline.run(claim(claims), Free()).state is JobState.SUCCEEDED
    order = ["dataset", "configure", "train", "wait", "judge"]
    again = [each for each in scripted.asked[before:] if each != "load"]
    done = order[: order.index(failing)]
    assert not set(again) & (set(done) - {"configure", "wait"})
    assert len(registry.list_versions("legal")) == 1


def test_a_second_version_is_a_canary_until_rewards_decide(
    pipeline: Pipeline, claims: Claims, registry: AdapterRegistry, scripted: Scripted
) -> None:
    first = run(pipeline, claims)
    scripted.seed = 2
    job = run(pipeline, claims)
    assert job.result is None
    waiting = claims.store.get(job.id)
    assert (waiting.state, waiting.worker, waiting.gpus) == (JobState.CANARY, None, ())
    snapshot = registry.snapshot()
    assert first.result is not None
    assert snapshot.agents["legal"].champion == first.result["adapter"]
    challenger = snapshot.versions[str(snapshot.agents["legal"].challenger)]
    assert challenger.state is State.CANARY
    assert step(pipeline, claims, job).state is JobState.CANARY
    scripted.advance_ = Advance("promote", "better")
    ended = step(pipeline, claims, job)
    assert ended.state is JobState.SUCCEEDED
    assert registry.snapshot().agents["legal"].champion == challenger.engine_name
    assert ended.watch_until is not None


def test_a_canary_that_is_worse_is_retired(
    pipeline: Pipeline, claims: Claims, registry: AdapterRegistry, scripted: Scripted
) -> None:
    first = run(pipeline, claims)
    scripted.seed, scripted.advance_ = 2, Advance("reject", "worse beyond doubt")
    job = step(pipeline, claims, run(pipeline, claims))
    assert (job.state, job.result and job.result["promoted"]) == (JobState.SUCCEEDED, False)
    aliases = registry.snapshot().agents["legal"]
    assert first.result is not None
    assert (aliases.champion, aliases.challenger) == (first.result["adapter"], None)


def test_a_cancelled_canary_leaves_the_champion_alone(
    pipeline: Pipeline, claims: Claims, registry: AdapterRegistry, scripted: Scripted
) -> None:
    run(pipeline, claims)
    champion = registry.snapshot().agents["legal"].champion
    scripted.seed = 2
    job = run(pipeline, claims)
    claims.store.cancel(job.id)
    assert step(pipeline, claims, job).state is JobState.CANCELLED
    aliases = registry.snapshot().agents["legal"]
    assert (aliases.champion, aliases.challenger) == (champion, None)


def test_a_canary_that_somebody_retired_or_promoted_ends(
    pipeline: Pipeline, claims: Claims, registry: AdapterRegistry, scripted: Scripted
) -> None:
    run(pipeline, claims)
    for seed, change in ((2, registry.retire), (3, registry.promote)):
        scripted.seed = seed
        job = run(pipeline, claims)
        name, _, version = str(registry.snapshot().agents["legal"].challenger).partition("@")
        change(name, version, actor="operator")
        ended = step(pipeline, claims, job)
        assert ended.state is JobState.SUCCEEDED
        assert ended.result is not None
        assert ended.result["promoted"] is (change == registry.promote)


def test_a_champion_that_regresses_is_rolled_back(
    pipeline: Pipeline, claims: Claims, registry: AdapterRegistry, scripted: Scripted
) -> None:
    first = run(pipeline, claims)
    scripted.seed, scripted.advance_ = 2, Advance("promote", "better")
    job = step(pipeline, claims, run(pipeline, claims))
    (watched,) = claims.store.watched()
    taken = claims.take(watched.id)
    assert taken is not None
    pipeline.watch_step(taken)
    assert claims.store.watched() != ()
    scripted.regressed_ = Advance("reject", "rewards fell")
    taken = claims.take(job.id)
    assert taken is not None
    pipeline.watch_step(taken)
    assert first.result is not None
    assert registry.snapshot().agents["legal"].champion == first.result["adapter"]
    ended = claims.store.get(job.id)
    assert (ended.watch_until, ended.result and ended.result["rolled_back"]) == (None, True)
    assert "rewards fell" in claims.store.events(job.id)[-1].message


def test_a_watch_ends_with_its_time(pipeline: Pipeline, claims: Claims, scripted: Scripted, store: JobStore) -> None:
    run(pipeline, claims)
    scripted.seed, scripted.advance_ = 2, Advance("promote", "better")
    job = step(pipeline, claims, run(pipeline, claims))
    with store.database.write() as session:
        row = session.get_one(JobRow, job.id)
        assert row.watch_until is not None
        row.watch_until -= timedelta(days=2)
    taken = claims.take(job.id)
    assert taken is not None
    pipeline.watch_step(taken)
    assert store.watched() == ()


def test_a_cancelled_job_stops_its_trainer(pipeline: Pipeline, claims: Claims, scripted: Scripted) -> None:
    class Ordered:
        """A hold whose job is cancelled while it trains."""

        looks = 0

        def check(self) -> None:
            self.looks += 1
            if self.looks > 5:
                raise Cancelled("cancelled")

    claims.store.submit(wish())
    with pytest.raises(Cancelled):
        pipeline.run(claim(claims), Ordered())
    assert "judge" not in scripted.asked


def test_an_agent_keeps_the_name_of_its_adapter(
    pipeline: Pipeline, claims: Claims, registry: AdapterRegistry, tmp_path: Path
) -> None:
    registry.register("lawyer", write_adapter(tmp_path / "old", 7), agent="legal")
    registry.register("support", write_adapter(tmp_path / "other", 8), agent="somebody-else")
    run(pipeline, claims)
    assert {version.name for version in registry.list_versions()} == {"lawyer", "support"}
    run(pipeline, claims, "support")
    assert "support-adapter" in {version.name for version in registry.list_versions()}


def test_an_uploaded_file_is_imported_before_the_dataset_is_built(
    pipeline: Pipeline, claims: Claims, scripted: Scripted
) -> None:
    from training.jobs import JobRequest

    claims.store.submit(JobRequest("legal", "file-1"))
    pipeline.run(claim(claims), Free())
    assert scripted.asked[:2] == ["import", "dataset"]


def test_a_base_that_nobody_serves_is_told(pipeline: Pipeline, claims: Claims) -> None:
    claims.store.submit(wish(base="llama-9"))
    with pytest.raises(Hopeless, match="'llama-9': tiny-base can"):
        pipeline.run(claim(claims), Free())

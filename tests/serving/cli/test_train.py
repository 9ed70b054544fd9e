"""`loradock train` on a real queue; a worker with scripted parts does the work where a test needs it done."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters_registry import AdapterRegistry, BaseModelSpec, Database, open_database
from serving.cli import train
from tests.adapters_registry.build import write_base
from tests.serving.cli.conftest import Cli
from tests.training.jobs.parts import Scripted
from tests.training.jobs.test_worker import make, running
from training.casebank import Case, CaseBank
from training.jobs import JobStore


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def bank(home: Path) -> Iterator[Database]:
    """A database with three cases of the agent `legal`."""
    home.mkdir()
    database = open_database(f"sqlite:///{home / 'loradock.db'}")
    cases = [
        Case(
            [{"role": "user", "content": f"question {word}"}], "legal", {"role": "assistant", "content": "a"}, reward=1
        )
        for word in ("one", "two", "three")
    ]
    CaseBank(database).add(cases)
    yield database
    database.close()


@pytest.fixture
def worked(bank: Database, home: Path, tmp_path: Path) -> Iterator[Scripted]:
    """A worker on that home."""
    base = BaseModelSpec.from_folder(write_base(tmp_path / "base"), "tiny-base", ["acme/Tiny-Base"], max_lora_rank=16)
    registry = AdapterRegistry(bank, home, bases={base.name: base})
    scripted = Scripted(tmp_path)
    with running(make(JobStore(bank), registry, scripted, home)):
        yield scripted


def test_a_waited_job_prints_the_outcome_and_nothing_else(cli: Cli, worked: Scripted) -> None:
    done = cli("train", "run", "--agent", "legal", "--wait", "--json")
    assert done.code == 0, done.err
    assert set(done.json) == {"job", "version", "gate", "promoted", "seconds", "cost_usd"}
    assert (done.json["promoted"], done.json["gate"]["passed"], len(done.json["version"])) == (True, True, 12)
    assert {"candidate", "champion", "base"} <= set(done.json["gate"])


def test_a_refused_candidate_is_a_finished_job(cli: Cli, worked: Scripted) -> None:
    worked.passed = False
    done = cli("train", "run", "--agent", "legal", "--wait", "--json")
    assert (done.code, done.json["promoted"], done.json["gate"]["passed"]) == (0, False, False)


def test_a_failed_job_is_one_line_and_exit_code_1(cli: Cli, worked: Scripted) -> None:
    from training.jobs.errors import Hopeless

    worked.fail["dataset"] = Hopeless("nothing is left to learn from", "dataset_empty")
    failed = cli("train", "run", "--agent", "legal", "--wait")
    assert (failed.code, failed.out) == (1, "")
    assert failed.err.splitlines()[-1].endswith("has failed: nothing is left to learn from")


def test_asking_again_joins_the_live_job(cli: Cli, bank: Database) -> None:
    first = cli("train", "run", "--agent", "legal", "--json")
    assert (first.code, first.json["state"], first.json["position"]) == (0, "queued", 1)
    again = cli("train", "run", "--agent", "legal", "--priority", "high", "--json").json
    assert (again["id"], again["priority"]) == (first.json["id"], "HIGH")


def test_without_a_worker_a_waited_job_is_told_so(cli: Cli, bank: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train, "WORKER_WAIT_S", 0.2)
    failed = cli("train", "run", "--agent", "legal", "--wait")
    assert failed.code == 1
    assert "no worker runs" in failed.err.splitlines()[-1]
    assert "loradock serve" in failed.err.splitlines()[-1]
    queued = cli("train", "run", "--agent", "legal")
    assert queued.code == 0
    assert "no worker runs" in queued.err


def test_an_agent_without_cases_is_refused_before_anything_is_queued(cli: Cli, bank: Database) -> None:
    refused = cli("train", "run", "--agent", "legl")
    assert (refused.code, refused.out, refused.err.count("\n")) == (1, "", 1)
    assert "agents with cases: legal" in refused.err
    assert cli("train", "jobs", "--json").json["data"] == []


def test_broken_options_are_exit_code_2(cli: Cli, bank: Database) -> None:
    for options in (["--rank", "7"], ["--method", "prefix"], ["--priority", "soon"], ["--epochs", "0"]):
        broken = cli("train", "run", "--agent", "legal", *options)
        assert (broken.code, broken.out, broken.err.count("\n")) == (2, "", 1), options


def test_jobs_are_listed_shown_cancelled_and_retried(cli: Cli, bank: Database) -> None:
    job = cli("train", "run", "--agent", "legal", "--json").json["id"]
    assert job in cli("train", "jobs").out
    assert [each["id"] for each in cli("train", "jobs", "--live", "--json").json["data"]] == [job]
    shown = cli("train", "status", job, "--json").json
    assert (shown["state"], shown["events"][0]["message"]) == ("queued", "queued by cli with priority NORMAL")
    assert cli("train", "status", "--json").json["queued"] == 1
    assert cli("train", "cancel", job).out == f"{job} is cancelled\n"
    assert cli("train", "jobs", "--live", "--json").json["data"] == []
    assert cli("train", "retry", job, "--json").json["state"] == "queued"
    for command in ("status", "cancel", "retry", "watch"):
        unknown = cli("train", command, "ftjob-none")
        assert (unknown.code, unknown.err) == (1, "loradock: no job 'ftjob-none'\n")


def test_a_job_is_watched_to_its_end(cli: Cli, worked: Scripted) -> None:
    assert cli("train", "run", "--agent", "legal").code == 0
    done = cli("train", "watch")
    if done.code:  # it may have ended before anyone looked
        assert "no job is live" in done.err
    listed = cli("train", "jobs", "--json").json["data"]
    followed = cli("train", "watch", listed[0]["id"])
    assert "is champion of legal" in followed.out


def test_decisions_of_the_triggers_are_listed(cli: Cli, worked: Scripted, bank: Database) -> None:
    from tests.training.jobs.test_worker import until
    from training.jobs.triggers import decisions

    until(lambda: decisions(JobStore(bank)))
    (decided,) = cli("train", "jobs", "--triggers", "--json").json["data"]
    assert (decided["agent"], decided["action"], decided["detail"]) == ("legal", "wait", "0 of 100 new cases")
    assert "0 of 100 new cases" in cli("train", "jobs", "--triggers").out

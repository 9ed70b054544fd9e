"""The trainer's process: what it is told, how it ends, and that none outlives its worker."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from training.jobs.errors import Cancelled, Hopeless, StepFailed
from training.jobs.processes import end_group, is_running, start_time
from training.jobs.trainer import PID, TrainerCommand, end_left_behind, read_json, run_trainer

COMMAND = TrainerCommand((sys.executable, "-m", "tests.training.jobs.fake_trainer"), grace_s=2.0)
WORKER = """
import sys
from pathlib import Path
from tests.training.jobs.test_trainer import COMMAND
from training.jobs.trainer import run_trainer
run_trainer(Path(sys.argv[1]), (), lambda status: None, COMMAND)
"""


def job(tmp_path: Path, **config: object) -> Path:
    folder = tmp_path / "job"
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def until(condition: Callable[[], object], limit_s: float = 20.0) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "in vain"
        time.sleep(0.02)


def nothing(_status: Mapping[str, Any]) -> None:
    return


def running(pid: int) -> bool:
    return start_time(pid) is not None


def test_the_result_is_what_the_trainer_wrote_and_is_not_made_twice(tmp_path: Path) -> None:
    folder, told = job(tmp_path, steps=4, step_s=0.3), []
    result = run_trainer(folder, (2, 5), lambda status: told.append(status.get("step")), COMMAND)
    assert result == {"steps": 4, "adapter": "a"}
    assert {1, 2, 3} & set(told)
    assert run_trainer(folder, (), nothing, COMMAND) == result
    assert (folder / "starts").read_text() == "0 '2,5'\n"
    assert not (folder / PID).exists()


def test_a_job_without_a_gpu_sees_none(tmp_path: Path) -> None:
    folder = job(tmp_path, steps=1)
    run_trainer(folder, (), nothing, COMMAND)
    assert (folder / "starts").read_text() == "0 ''\n"


def test_a_failure_tells_the_trainers_own_reason(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match=r"exit status 1\): the disk is full"):
        run_trainer(job(tmp_path, fail_at=2), (), nothing, COMMAND)
    with pytest.raises(Hopeless, match=r"^the disk is full$"):
        run_trainer(job(tmp_path, fail_at=2, code=2), (), nothing, COMMAND)


def test_a_trainer_that_never_began_is_told_by_its_log(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="No module named"):
        run_trainer(job(tmp_path), (), nothing, TrainerCommand((sys.executable, "-m", "no_such_trainer")))


def test_stopping_lets_it_write_a_checkpoint_and_it_goes_on_from_there(tmp_path: Path) -> None:
    folder = job(tmp_path, steps=40, step_s=0.05)

    def stop_at_three(status: Mapping[str, Any]) -> None:
        if status.get("step", 0) >= 3:
            raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        run_trainer(folder, (), stop_at_three, COMMAND)
    assert not (folder / PID).exists()
    job(tmp_path, steps=40)
    assert run_trainer(folder, (), nothing, COMMAND)["steps"] == 40
    first, second = (int(line.split()[0]) for line in (folder / "starts").read_text().splitlines())
    assert first == 0
    assert second >= 3


def test_a_deaf_trainer_and_its_children_are_killed_after_the_grace(tmp_path: Path) -> None:
    folder = job(tmp_path, steps=1000, step_s=0.05, deaf=True, child=True)

    def stop(status: Mapping[str, Any]) -> None:
        if status.get("step", 0) >= 1:
            raise Cancelled("cancelled")

    with pytest.raises(Cancelled):
        run_trainer(folder, (), stop, TrainerCommand(COMMAND.argv, grace_s=0.3))
    until(lambda: not running(int((folder / "child").read_text())))


@pytest.mark.parametrize("deaf", [False, True])
def test_no_trainer_outlives_a_worker_that_is_killed(tmp_path: Path, deaf: bool) -> None:
    folder = job(tmp_path, steps=10_000, step_s=0.05, child=True, deaf=deaf)
    worker = subprocess.Popen([sys.executable, "-c", WORKER, str(folder)])
    until(lambda: (folder / "child").exists() and (folder / PID).exists())
    known = read_json(folder / PID)
    assert known is not None
    assert is_running(known["pid"], known["started"])
    worker.kill()
    worker.wait()
    until(lambda: not running(int((folder / "child").read_text())))
    until(lambda: not running(known["pid"]))
    assert not end_left_behind(folder)


def test_a_trainer_whose_guard_was_killed_too_is_found_again(tmp_path: Path) -> None:
    folder = job(tmp_path, steps=10_000, step_s=0.05)
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    (folder / PID).write_text(json.dumps({"pid": orphan.pid, "started": start_time(orphan.pid)}))
    job(tmp_path, steps=2)
    run_trainer(folder, (), nothing, COMMAND)
    assert orphan.wait(10) == -signal.SIGTERM


def test_a_number_that_means_another_process_by_now_is_left_alone(tmp_path: Path) -> None:
    folder = job(tmp_path)
    started = start_time(os.getpid())
    assert started is not None
    (folder / PID).write_text(json.dumps({"pid": os.getpid(), "started": started - 1}))
    assert not end_left_behind(folder)
    assert not end_group(os.getpid(), started - 1, 0)

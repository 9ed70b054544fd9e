"""kill -9 at random moments: each run goes on and ends where the undisturbed one does."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import time
from collections.abc import Callable
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

import pytest

from tests.training.trainer.conftest import losses
from tests.training.trainer.victim import train_in
from training.trainer import TrainingConfig

KILLS = 10
MOST_S = 0.6
MOST_STEPS = 5
"""between two kills, whatever time is left: a fast machine must not end the run before the last of them"""
LIBRARIES = ["accelerate", "matplotlib.figure", "peft", "torch", "transformers", "training.trainer.run"]

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def forks() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*LIBRARIES, "transformers.models.qwen2.modeling_qwen2"])
    return context


def start(forks: ForkServerContext, config: TrainingConfig) -> ForkServerProcess:
    process = forks.Process(target=train_in, args=(str(config.output),))
    process.start()
    return process


def finish(forks: ForkServerContext, config: TrainingConfig) -> float:
    process = start(forks, config)
    process.join(120)
    log = (config.output / "log").read_text()
    assert process.exitcode == 0, log
    result: float = json.loads((config.output / "result.json").read_text())["loss"]
    return result


def wait_for_a_step(config: TrainingConfig, process: ForkServerProcess) -> None:
    """Only a run that has begun can be torn."""
    folder = config.output / "checkpoints"
    while process.is_alive() and not any(folder.glob("step-*[0-9]")):
        time.sleep(0.02)


def steps_of(config: TrainingConfig) -> int:
    """Up to the newest checkpoint."""
    return max((int(folder.name[5:]) for folder in (config.output / "checkpoints").glob("step-*[0-9]")), default=0)


def wait_for_a_moment(config: TrainingConfig, process: ForkServerProcess, rng: random.Random) -> None:
    """While it starts, reads its checkpoint, computes a step or writes one."""
    end = time.monotonic() + rng.uniform(0.0, MOST_S)
    last = steps_of(config) + rng.randint(1, MOST_STEPS)
    while process.is_alive() and time.monotonic() < end and steps_of(config) < last:
        time.sleep(0.005)
    time.sleep(rng.uniform(0.0, 0.02))


@pytest.mark.timeout(600)
def test_killed_at_ten_random_moments_it_ends_within_a_thousandth(
    configure: Callable[..., TrainingConfig], forks: ForkServerContext, tmp_path: Path
) -> None:
    changes = {"max_steps": 120, "dropout": 0.1, "checkpoint_steps": 1, "evaluations": 6, "threads": 1}
    undisturbed = configure(output=tmp_path / "undisturbed", **changes)
    wanted = finish(forks, undisturbed)
    disturbed = configure(output=tmp_path / "disturbed", **changes)
    rng = random.Random(20)
    for _ in range(KILLS):
        process = start(forks, disturbed)
        wait_for_a_step(disturbed, process)
        wait_for_a_moment(disturbed, process, rng)
        assert process.pid is not None and process.is_alive()
        os.kill(process.pid, 9)
        process.join()
    assert not (disturbed.output / "result.json").exists()
    assert finish(forks, disturbed) == pytest.approx(wanted, abs=1e-3)
    assert losses(disturbed) == pytest.approx(losses(undisturbed), abs=1e-3)

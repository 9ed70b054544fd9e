from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from configs import embedded
from tests.training.trainer.conftest import losses
from training.trainer import Launcher, TrainingConfig
from training.trainer.launcher import launch_command

Configure = Callable[..., TrainingConfig]


def options(command: list[str]) -> dict[str, str]:
    return {name: value for name, value in pairwise(command) if name.startswith("--")}


def test_two_gpus_of_one_host(configure: Configure) -> None:
    config = configure(launcher=Launcher(processes=2))
    command = launch_command(config, on_gpu=True)
    assert command[:3] == [sys.executable, "-m", "accelerate.commands.launch"]
    assert command[-3:] == ["-m", "training.trainer", str(config.output)]
    assert "--multi_gpu" in command
    assert options(command)["--num_processes"] == "2"
    assert options(command)["--mixed_precision"] == "bf16"


@pytest.mark.parametrize(
    ("strategy", "wanted"),
    [
        ("fsdp", {"--fsdp_version": "2", "--fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}),
        ("zero2", {"--zero_stage": "2", "--gradient_clipping": "1.0"}),
        ("zero3", {"--zero_stage": "3"}),
    ],
)
def test_weights_can_be_spread(configure: Configure, strategy: Any, wanted: dict[str, str]) -> None:
    command = launch_command(configure(launcher=Launcher(processes=4, strategy=strategy)), on_gpu=True)
    assert options(command).items() >= wanted.items()
    assert ("--use_fsdp" in command) == (strategy == "fsdp")
    assert ("--use_deepspeed" in command) == strategy.startswith("zero")


def test_every_host_knows_the_first(configure: Configure) -> None:
    how = Launcher(processes=16, machines=2, machine_rank=1, main_address="10.0.0.1:29500")
    wanted = {"--num_machines": "2", "--machine_rank": "1", "--main_process_ip": "10.0.0.1"}
    assert options(launch_command(configure(launcher=how), on_gpu=True)).items() >= wanted.items()


@pytest.mark.parametrize("strategy", ["ddp", "fsdp", "zero2"])
def test_accelerate_understands_the_command(configure: Configure, strategy: Any) -> None:
    from accelerate.commands.launch import launch_command_parser

    how = Launcher(processes=2, strategy=strategy)
    command = launch_command(configure(launcher=how), on_gpu=True)
    arguments = launch_command_parser().parse_args(command[3:])
    assert arguments.training_script == "training.trainer"
    assert arguments.module
    assert arguments.num_processes == 2


@pytest.mark.slow
def test_two_processes_end_where_one_does(configure: Configure, dataset: Path, tmp_path: Path) -> None:
    """With the same global batch, on the embedded base."""
    changes = {"base": str(embedded.BASE), "dropout": 0.0, "max_steps": 6, "batch_tokens": 256, "threads": 1}
    runs = []
    for processes in (1, 2):
        config = configure(output=tmp_path / str(processes), launcher=Launcher(processes=processes), **changes)
        command = [sys.executable, "-m", "training.trainer", str(config.output)]
        ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=240)
        assert ended.returncode == 0, ended.stderr
        runs.append(config)
    one, two = runs
    assert losses(two) == pytest.approx(losses(one), abs=2e-3)
    results = [json.loads((config.output / "result.json").read_text()) for config in runs]
    assert results[1]["loss"] == pytest.approx(results[0]["loss"], abs=1e-3)
    assert results[1]["validation_loss"] == pytest.approx(results[0]["validation_loss"], abs=1e-3)
    assert results[1]["steps"] == results[0]["steps"] == 6

"""Several processes: accelerate's launcher starts this module once for each, and hands on signals and the end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import FrameType

from training.trainer.config import TrainingConfig

ZERO_STAGES = {"zero2": "2", "zero3": "3"}


def launched() -> bool:
    """Whether this process is one of several that a launcher started."""
    return "LOCAL_RANK" in os.environ


def launch_command(config: TrainingConfig, *, on_gpu: bool) -> list[str]:
    """`accelerate launch` for this machine's share of the processes, training what lies in `config.output`."""
    how = config.launcher
    command = [sys.executable, "-m", "accelerate.commands.launch"]
    # without a GPU too: it means one process a rank, started by torchrun
    command += ["--multi_gpu"] if how.strategy == "ddp" else []
    command += ["--num_processes", str(how.processes), "--num_machines", str(how.machines)]
    command += ["--mixed_precision", "bf16" if on_gpu else "no", "--dynamo_backend", "no"]
    command += ["--num_cpu_threads_per_process", str(config.threads or max(1, (os.cpu_count() or 1) // how.processes))]
    if how.main_address is not None:
        host, _, port = how.main_address.rpartition(":")
        command += ["--machine_rank", str(how.machine_rank), "--main_process_ip", host, "--main_process_port", port]
    else:
        command += ["--main_process_port", "0"]
    command += _strategy(config)
    return [*command, "-m", "training.trainer", str(config.output)]


def _strategy(config: TrainingConfig) -> list[str]:
    strategy = config.launcher.strategy
    if strategy == "fsdp":
        return [
            *("--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP"),
            *("--fsdp_state_dict_type", "SHARDED_STATE_DICT", "--fsdp_cpu_ram_efficient_loading", "true"),
        ]
    if strategy in ZERO_STAGES:
        return [
            *("--use_deepspeed", "--zero_stage", ZERO_STAGES[strategy], "--gradient_clipping", str(config.clip)),
            *("--gradient_accumulation_steps", "1", "--zero3_save_16bit_model", "true"),
        ]
    return []


def launch(config: TrainingConfig, *, on_gpu: bool) -> int:
    """Run the launcher to its end; its exit status. SIGTERM is handed on, so that the processes write a checkpoint."""
    process = subprocess.Popen(launch_command(config, on_gpu=on_gpu), cwd=Path.cwd())  # noqa: S603  # our own command

    def hand_on(number: int, _frame: FrameType | None) -> None:
        process.send_signal(number)

    before = signal.signal(signal.SIGTERM, hand_on)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGTERM, before)

"""`python -m training.trainer JOB_FOLDER`: train what its config.json says, or go on with it.

Exit status: 0 done, or stopped by SIGTERM with a checkpoint and without result.json; 2 the configuration cannot be
trained; 1 anything else. One line on standard error tells the reason.
"""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from training.trainer.config import TrainingConfig, load_config
from training.trainer.errors import TrainerError
from training.trainer.launcher import launch, launched
from training.trainer.status import StatusFile, read_status

USAGE = 2


def main(arguments: list[str]) -> int:
    """Train; the exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write("usage: python -m training.trainer JOB_FOLDER\n")
        return USAGE
    folder = Path(arguments[0]).absolute()
    try:
        config = load_config(folder)
    except TrainerError as error:
        if folder.is_dir():
            StatusFile(folder).end("failed", str(error))
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    if config.launcher.processes > 1 and not launched():
        return _launch(config)
    return _train(config)


def _launch(config: TrainingConfig) -> int:
    import torch

    code = launch(config, on_gpu=config.device != "cpu" and torch.cuda.is_available())
    status = read_status(config.output)
    if status is not None and status.state == "stopped":
        return 0
    return min(code, 1) if code >= 0 else 1


def _train(config: TrainingConfig) -> int:
    asked = threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        asked.set()

    signal.signal(signal.SIGTERM, stop)
    _leave_out_what_is_not_needed()
    from rich.console import Console

    from training.trainer.run import Workshop, train

    try:
        train(config, Console(stderr=True), Workshop(stopping=asked.is_set))
    except TrainerError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


def _leave_out_what_is_not_needed() -> None:
    """Spare a third of the start on a processor: transformers and peft import these wherever they are installed."""
    import torch

    sys.modules["sklearn"] = None  # type: ignore[assignment]  # Python's way to say: not here
    if not torch.cuda.is_available():
        sys.modules["bitsandbytes"] = None  # type: ignore[assignment]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

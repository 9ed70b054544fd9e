"""A trainer in a process forked from one that has its libraries loaded: to be killed."""

from __future__ import annotations

import sys
from pathlib import Path


def train_in(folder: str) -> None:
    from rich.console import Console

    from training.trainer import load_config
    from training.trainer.run import train

    with Path(folder, "log").open("a", encoding="utf-8") as log:
        sys.stderr = log
        train(load_config(Path(folder)), Console(file=log))

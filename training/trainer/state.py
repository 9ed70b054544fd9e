"""What a run is made of, and what it must remember to go on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from training.trainer.batches import Batch
from training.trainer.checkpoints import Checkpoints
from training.trainer.config import TrainingConfig
from training.trainer.memory import Thrift
from training.trainer.report import Reporter
from training.trainer.rows import Row
from training.trainer.status import StatusFile
from training.trainer.step import Score, summed_loss
from training.trainer.watch import Pace, Watch

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator  # type: ignore[import-untyped]


@dataclass
class RunState:
    """All that a resumed run must know besides weights, optimiser and random numbers. `step` counts what is done."""

    thrift: Thrift
    pace: Pace
    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    watch: Watch = field(default_factory=Watch)
    best: Score | None = None
    best_step: int = 0
    misses: int = 0
    right: int = 0
    """looks on end that found every validation case right"""

    def look(self, score: Score) -> bool:
        """Note a look at the validation cases; whether it is the best. Once all are right, a better loss is no gain."""
        all_right = self.best is not None and self.best.exact >= 1.0
        better = score.beats(self.best)
        if better:
            self.best, self.best_step = score, self.step
        self.misses = 0 if better and not all_right else self.misses + 1
        self.right = self.right + 1 if score.exact >= 1.0 else 0
        return better

    def dump(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    @classmethod
    def load(cls, values: dict[str, Any]) -> RunState:
        """From what `dump` told."""
        best = values["best"]
        parts = {
            "thrift": Thrift(**values["thrift"]),
            "pace": Pace(**values["pace"]),
            "watch": Watch(**values["watch"]),
            "best": Score(**best) if best else None,
        }
        return cls(**values | parts)


@dataclass(frozen=True)
class Parts:
    """What the loop is built from. `loss` is the summed loss of a batch, by its weights."""

    config: TrainingConfig
    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    train: Sequence[Row]
    validation: Sequence[Row]
    pad: int
    checkpoints: Checkpoints
    reporter: Reporter
    status: StatusFile
    stopping: Callable[[], bool]
    loss: Callable[[torch.nn.Module, Batch], torch.Tensor] = summed_loss

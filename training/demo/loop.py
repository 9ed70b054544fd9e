"""The training loop, shared by the base and the adapters."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from training.demo.batches import Encoded, collate

if TYPE_CHECKING:
    import torch
    from rich.console import Console

WARM_UP = 0.04
"""share of the steps in which the rate rises"""
FLOOR = 0.03
"""last rate as a share of the peak"""
CLIP = 1.0
WEIGHT_DECAY = 0.05
SMOOTHING = 0.95
"""of the loss that is shown"""


class TrainingDiverged(RuntimeError):
    """The loss is not a number; the message says at which step."""


@dataclass(frozen=True, slots=True)
class LossPoint:
    """Loss of one step, in nats a counted token."""

    step: int
    loss: float
    rate: float


@dataclass(frozen=True)
class Run:
    """What one training took. `tokens` counts padding too."""

    curve: list[LossPoint]
    seconds: float
    tokens: int

    def last_loss(self) -> float:
        """Mean loss of the last tenth of the steps."""
        tail = self.curve[-max(1, len(self.curve) // 10) :]
        return sum(point.loss for point in tail) / len(tail)


def rate_at(step: int, steps: int, peak: float) -> float:
    """Linear rise, then cosine down to FLOOR of `peak`; `step` counts from 0."""
    rise = max(1, round(steps * WARM_UP))
    if step < rise:
        return peak * (step + 1) / rise
    progress = (step - rise) / max(1, steps - rise)
    return peak * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))


def adamw(trained: Sequence[torch.nn.Parameter], peak_rate: float, *, fused: bool | None = None) -> torch.optim.AdamW:
    """The optimizer; `fused` is torch's. Only matrices decay."""
    import torch

    matrices = [parameter for parameter in trained if parameter.ndim > 1]
    vectors = [parameter for parameter in trained if parameter.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=peak_rate, betas=(0.9, 0.95), fused=fused)


def fit(
    model: torch.nn.Module,
    feed: Iterator[list[Encoded]],
    *,
    steps: int,
    peak_rate: float,
    pad: int,
    title: str,
    console: Console,
) -> Run:
    """Train the parameters that require a gradient, in place: AdamW, float32, clipped gradients.

    bfloat16 is slower here: on CPU its kernels are built anew for each shape, and batches of many lengths have many.
    Raises TrainingDiverged at the first loss that is not finite.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    device = trained[0].device
    optimizer = adamw(trained, peak_rate)
    model.train()
    curve: list[LossPoint] = []
    tokens = 0
    begun = time.monotonic()
    with _progress(console) as progress:
        task = progress.add_task(title, total=steps, loss=float("nan"))
        shown = float("nan")
        for step in range(steps):
            rate = rate_at(step, steps, peak_rate)
            for group in optimizer.param_groups:
                group["lr"] = rate
            ids, labels = collate(next(feed), pad)
            loss = _step(model, optimizer, trained, ids.to(device), labels.to(device))
            if not math.isfinite(loss):
                raise TrainingDiverged(f"{title}: loss is {loss} at step {step}")
            tokens += ids.numel()
            curve.append(LossPoint(step, loss, rate))
            shown = loss if math.isnan(shown) else SMOOTHING * shown + (1 - SMOOTHING) * loss
            progress.update(task, advance=1, loss=shown)
    return Run(curve, time.monotonic() - begun, tokens)


def _step(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    trained: list[torch.nn.Parameter],
    ids: torch.Tensor,
    labels: torch.Tensor,
) -> float:
    import torch

    loss = model(input_ids=ids, labels=labels).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(trained, CLIP)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return float(loss.detach())


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
        console=console,
    )

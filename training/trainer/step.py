"""One pass over a batch, and what it costs to predict it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.trainer.batches import IGNORED, Batch

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Score:
    """How well validation cases are predicted: nats a counted token, and the share of cases with no wrong token.

    The second is what greedy decoding would get exactly right; with long answers it is 0 and the loss decides.
    """

    loss: float
    exact: float

    def beats(self, other: Score | None) -> bool:
        """Whether more cases are right, or as many with a lower loss."""
        return other is None or (self.exact, -self.loss) > (other.exact, -other.loss)


def summed_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """Sum over the labelled tokens of `batch` by their weights, float32, with gradient."""
    from torch.nn.functional import cross_entropy

    from training.trainer.fast import is_accelerated

    if is_accelerated(model):
        return _fast_loss(model, batch)
    logits, labels = _predictions(model, batch)
    flat, targets = logits.flatten(0, 1), labels.flatten()
    if batch.weights is None:
        return cross_entropy(flat, targets, ignore_index=IGNORED, reduction="sum")
    losses = cross_entropy(flat, targets, ignore_index=IGNORED, reduction="none")
    return (losses * batch.weights[:, batch.keep].flatten()).sum()


def scores(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss, and how many rows of a padded batch have no wrong token; without gradient."""
    import torch
    from torch.nn.functional import cross_entropy

    with torch.no_grad():
        logits, labels = _predictions(model, batch)
        loss = cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum")
        right = (logits.argmax(-1) == labels) | (labels == IGNORED)
        return loss, right.all(-1).sum()


def offloaded(*, offload: bool) -> AbstractContextManager[Any]:
    """Inside, activations wait for the backward pass in the host's memory."""
    import torch

    return torch.autograd.graph.save_on_cpu(pin_memory=True) if offload else nullcontext()


def _fast_loss(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """The fast path makes logits a few rows at a time, of rows with a label alone."""
    extra = {} if batch.positions is None else {"position_ids": batch.positions}
    if batch.weights is not None:
        extra["loss_weights"] = batch.weights
    output = model(input_ids=batch.ids, shift_labels=batch.labels, num_items_in_batch=1, use_cache=False, **extra)
    loss: torch.Tensor = output.loss
    return loss


def _predictions(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (rows, kept, vocabulary), float32, at the positions that have labels, and these labels (rows, kept).

    Most tokens are prompt, so that the output head, which is most of a small model, is spared most of its work.
    """
    extra = {} if batch.positions is None else {"position_ids": batch.positions}
    output = model(input_ids=batch.ids, logits_to_keep=batch.keep, use_cache=False, **extra)
    return output.logits.float(), batch.labels[:, batch.keep]

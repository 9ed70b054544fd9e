"""Which rows make a step, and how they become tensors.

The order is a function of seed and epoch alone, so that a resumed run meets the same batches. A step's rows are then
shared between processes and cut into micro-batches; neither changes the gradient, which is a mean over all tokens with
loss of the step, by their weights.
"""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from training.trainer.rows import Row

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""label of tokens without loss, as in torch and transformers"""
BUCKET = 64
"""steps whose rows are sorted by length together; their order is shuffled again"""


@dataclass(frozen=True, slots=True)
class Batch:
    """One forward pass.

    `ids` and `labels` are int64 of shape (rows, width); `labels` holds the *next* token where that one counts, else
    IGNORED. `keep`, int64 of shape (kept,), lists the positions at which any row has a label. A packed batch is one
    row with `positions` that begin at 0 for each case; a padded one has None there and needs no mask, since no token
    sees the padding behind it. `lengths` are those of the cases. `weights`, float32 of the shape of `labels`, say how
    much the loss of each counts; None: all alike.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    keep: torch.Tensor
    positions: torch.Tensor | None
    lengths: tuple[int, ...]
    weights: torch.Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same on `device`."""
        positions, weights = (None if each is None else each.to(device) for each in (self.positions, self.weights))
        ids, labels, keep = (each.to(device) for each in (self.ids, self.labels, self.keep))
        return Batch(ids, labels, keep, positions, self.lengths, weights)


class Schedule:
    """The steps of a run, as indices of rows: every epoch holds each row once, in batches of at most `batch_tokens`."""

    def __init__(
        self, lengths: Sequence[int], batch_tokens: int, seed: int, epochs: float, max_steps: int | None = None
    ) -> None:
        if not lengths:
            raise ValueError("no rows to train on")
        self._lengths = lengths
        self._batch_tokens = batch_tokens
        self._seed = seed
        self._epoch: tuple[int, list[list[int]]] = (-1, [])
        self._starts = [0]
        for epoch in range(math.ceil(epochs)):
            size = len(self._plan(epoch))
            share = min(1.0, epochs - epoch)
            self._starts.append(self._starts[-1] + max(1, round(size * share)))
        self.steps = min(self._starts[-1], max_steps or self._starts[-1])

    def rows_of(self, step: int) -> list[int]:
        """Indices of the rows of `step`, which counts from 0; the longest is the last."""
        epoch = bisect.bisect_right(self._starts, step) - 1
        return self._plan(epoch)[step - self._starts[epoch]]

    def epoch_at(self, step: int) -> float:
        """Epochs that are done after `step` steps."""
        epoch = min(bisect.bisect_right(self._starts, step) - 1, len(self._starts) - 2)
        return epoch + (step - self._starts[epoch]) / (self._starts[epoch + 1] - self._starts[epoch])

    def _plan(self, epoch: int) -> list[list[int]]:
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._made(epoch))
        return self._epoch[1]

    def _made(self, epoch: int) -> list[list[int]]:
        rng = random.Random(f"{self._seed}/{epoch}")  # noqa: S311  # it varies order and keeps no secrets
        order = list(range(len(self._lengths)))
        rng.shuffle(order)
        mean = sum(self._lengths) / len(order)
        span = max(1, int(BUCKET * self._batch_tokens / mean))
        plan: list[list[int]] = []
        for start in range(0, len(order), span):
            alike = sorted(order[start : start + span], key=lambda index: self._lengths[index])
            plan.extend(cut(alike, self._lengths, self._batch_tokens))
        rng.shuffle(plan)
        return plan


def cut(order: Sequence[int], lengths: Sequence[int], tokens: int) -> list[list[int]]:
    """Cut indices of rows of rising length into groups of at most `tokens` padded tokens, or of one row."""
    groups: list[list[int]] = []
    for index in order:
        if not groups or lengths[index] * (len(groups[-1]) + 1) > tokens:
            groups.append([])
        groups[-1].append(index)
    return groups


def share(indices: Sequence[int], lengths: Sequence[int], tokens: int, process: int, processes: int) -> list[list[int]]:
    """The micro-batches of one process: as many as every other has, empty ones among them if need be."""
    shares = [cut(indices[each::processes], lengths, tokens) for each in range(processes)]
    most = max(map(len, shares))
    mine = shares[process]
    return mine + [[] for _ in range(most - len(mine))]


def loss_weight(row: Row) -> float:
    """What `row` counts in the mean of a step: its tokens with loss by their weight."""
    return row.weight * (len(row) - max(row.prompt, 1))


def padded(rows: Sequence[Row], pad: int) -> Batch:
    """Rows side by side, padded on the right."""
    import torch

    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad)
    labels = torch.full((len(rows), width), IGNORED)
    for at, row in enumerate(rows):
        tokens = torch.from_numpy(row.ids).long()
        begin = max(row.prompt, 1)
        ids[at, : len(row)] = tokens
        labels[at, begin - 1 : len(row) - 1] = tokens[begin:]
    weights = _weights(rows, [width] * len(rows), labels)
    return Batch(ids, labels, _labelled(labels), None, tuple(len(row) for row in rows), weights)


def packed(rows: Sequence[Row]) -> Batch:
    """Rows one behind the other; positions tell where each begins."""
    import torch

    ids = torch.cat([torch.from_numpy(row.ids).long() for row in rows])
    labels = torch.full_like(ids, IGNORED)
    at = 0
    for row in rows:
        begin = max(row.prompt, 1)
        labels[at + begin - 1 : at + len(row) - 1] = ids[at + begin : at + len(row)]
        at += len(row)
    positions = torch.cat([torch.arange(len(row)) for row in rows])
    lengths = tuple(len(row) for row in rows)
    weights = _weights(rows, lengths, labels[None])
    return Batch(ids[None], labels[None], _labelled(labels[None]), positions[None], lengths, weights)


def idle(pad: int) -> Batch:
    """A batch without loss, for a process that has no rows while others have."""
    import torch

    labels = torch.full((1, 2), IGNORED)
    return Batch(torch.full((1, 2), pad), labels, torch.tensor([0]), None, (2,))


def _weights(rows: Sequence[Row], widths: Sequence[int], labels: torch.Tensor) -> torch.Tensor | None:
    """Each row's weight for the `widths` tokens that it has in `labels`; None if all are 1."""
    import torch

    if all(row.weight == 1 for row in rows):
        return None
    return torch.tensor([row.weight for row in rows]).repeat_interleave(torch.tensor(widths)).view(labels.shape)


def _labelled(labels: torch.Tensor) -> torch.Tensor:
    return (labels != IGNORED).any(0).nonzero().squeeze(1)

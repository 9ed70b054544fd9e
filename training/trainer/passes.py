"""Passes over rows, forward and backward, cut so small that they fit into memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from training.trainer import step as steps
from training.trainer.batches import Batch, idle, loss_weight, packed, padded, share
from training.trainer.errors import OutOfMemory, TrainerError
from training.trainer.memory import Thrift, free_memory, is_out_of_memory
from training.trainer.model import set_checkpointing
from training.trainer.rows import Row
from training.trainer.state import Parts
from training.trainer.step import Score
from training.trainer.watch import check_finite

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")


class Rebuild(Exception):
    """The model must be loaded anew to save memory in the way of `thrift`."""

    def __init__(self, thrift: Thrift) -> None:
        super().__init__(str(thrift))
        self.thrift = thrift


class Passes:
    """Steps and looks with one model. `thrift` tells how memory is saved, and changes when it runs out."""

    def __init__(self, parts: Parts, thrift: Thrift) -> None:
        self._parts = parts
        self._accelerator = parts.accelerator
        self._lengths = [len(row) for row in parts.train]
        self.thrift = thrift
        self.trained = [weight for weight in parts.model.parameters() if weight.requires_grad]

    def step(self, rows: Sequence[int], clip: float) -> tuple[float, float]:
        """One update of the weights: the mean loss by the tokens' weights, and the gradient's norm before `clip`.

        Raises Unhealthy before the update if either is no number; OutOfMemory, Rebuild.
        """
        return self._guarded(lambda: self._step(rows, clip))

    def score(self) -> Score:
        """How well the validation rows, whose weights are 1, are predicted. Raises OutOfMemory, Rebuild."""
        return self._guarded(self._score)

    def sum(self, value: float) -> float:
        """Over all processes."""
        if self._accelerator.num_processes == 1:
            return value
        import torch

        total: Any = self._accelerator.reduce(torch.tensor(value, device=self._accelerator.device), "sum")
        return float(total)

    def _step(self, rows: Sequence[int], clip: float) -> tuple[float, float]:
        parts, accelerator = self._parts, self._accelerator
        total = sum(loss_weight(parts.train[index]) for index in rows)
        groups = self._shared(rows, self._lengths)
        parts.optimizer.zero_grad()
        summed = 0.0
        for number, group in enumerate(groups, 1):
            accelerator.sync_gradients = number == len(groups)
            summed += self._backward([parts.train[index] for index in group], accelerator.num_processes / total)
        loss = self.sum(summed) / total
        norm: Any = accelerator.clip_grad_norm_(self.trained, clip)
        gradient = float(norm) if norm is not None else 0.0
        check_finite(loss, gradient)
        parts.optimizer.step()
        return loss, gradient

    def _backward(self, rows: Sequence[Row], scale: float) -> float:
        def work(batch: Batch) -> float:
            accelerator = self._accelerator
            with self._apart(), steps.offloaded(offload=self.thrift.offload):
                with accelerator.autocast():
                    loss = self._parts.loss(self._parts.model, batch)
                accelerator.backward(loss * scale)
            return float(loss.detach())

        return _measured(work, self._batch(rows), self._accelerator.device)

    def _apart(self) -> AbstractContextManager[Any]:
        """No exchange of gradients before the last micro-batch of a step."""
        if self._accelerator.sync_gradients:
            return nullcontext()
        apart: AbstractContextManager[Any] = self._accelerator.no_sync(self._parts.model)
        return apart

    def _batch(self, rows: Sequence[Row]) -> Batch:
        if not rows:
            return idle(self._parts.pad)
        return packed(rows) if self._parts.config.packing else padded(rows, self._parts.pad)

    def _shared(self, indices: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
        accelerator = self._accelerator
        return share(indices, lengths, self.thrift.micro_tokens, accelerator.process_index, accelerator.num_processes)

    def _score(self) -> Score:
        model, rows = self._parts.model, self._parts.validation
        lengths = [len(row) for row in rows]
        loss = right = 0.0
        model.eval()
        try:
            for group in self._shared(sorted(range(len(rows)), key=lengths.__getitem__), lengths):
                found = self._scored([rows[index] for index in group])
                loss, right = loss + found[0], right + found[1]
        finally:
            model.train()
        return Score(self.sum(loss) / sum(map(loss_weight, rows)), self.sum(right) / len(rows))

    def _scored(self, rows: Sequence[Row]) -> tuple[float, float]:
        def work(batch: Batch) -> tuple[float, float]:
            with self._accelerator.autocast():
                loss, right = steps.scores(self._parts.model, batch)
            return float(loss), float(right) if rows else 0.0

        batch = padded(rows, self._parts.pad) if rows else idle(self._parts.pad)
        return _measured(work, batch, self._accelerator.device)

    def _guarded(self, work: Callable[[], Value]) -> Value:
        """Do `work`, again with less memory each time that it runs out."""
        while True:
            try:
                return work()
            except _TooMuch as error:
                tokens, rows, cause = error.tokens, error.rows, error.cause
            # only now, when no traceback holds the pass any more
            self._parts.optimizer.zero_grad()
            free_memory()
            self._save_memory(tokens, rows, cause)

    def _save_memory(self, tokens: int, rows: int, cause: BaseException) -> None:
        if self._accelerator.num_processes > 1:
            raise OutOfMemory(
                f"out of memory with {tokens} tokens in a process; start again with micro_tokens below {tokens}"
            ) from cause
        before, on_gpu = self.thrift, self._accelerator.device.type == "cuda"
        may_quantise = self._parts.config.method != "full"
        after = before.halved(tokens) if rows > 1 else before.next(on_gpu=on_gpu, may_quantise=may_quantise)
        if after is None:
            raise OutOfMemory(
                f"out of memory with one row of {tokens} tokens and {before}; "
                "lower max_length or the rank, or take a smaller base"
            ) from cause
        self._parts.reporter.say(f"out of memory: going on with {after}")
        self.thrift = after
        if after.four_bit and not before.four_bit:
            raise Rebuild(after)
        if after.checkpointing:
            set_checkpointing(self._accelerator.unwrap_model(self._parts.model))


class _TooMuch(TrainerError):
    """Memory ran out in a pass over so many tokens and rows."""

    def __init__(self, tokens: int, rows: int, cause: BaseException) -> None:
        super().__init__(f"out of memory with {tokens} tokens")
        self.tokens = tokens
        self.rows = rows
        self.cause = cause


def _measured(work: Callable[[Batch], Value], batch: Batch, device: torch.device) -> Value:
    """Do `work` on the device; a lack of memory is told with the size of the batch."""
    try:
        return work(batch.to(device))
    except Exception as error:
        if is_out_of_memory(error):
            raise _TooMuch(sum(batch.lengths), len(batch.lengths), error.with_traceback(None)) from None
        raise

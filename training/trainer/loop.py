"""The loop: steps, looks at the validation cases, checkpoints, and the ways out of trouble."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.trainer import step as steps
from training.trainer.batches import Batch, Schedule, counted, idle, packed, padded, share
from training.trainer.checkpoints import Checkpoint, Checkpoints
from training.trainer.config import TrainingConfig
from training.trainer.errors import OutOfMemory, TrainerError, TrainingDiverged
from training.trainer.memory import Thrift, free_memory, is_out_of_memory
from training.trainer.model import set_checkpointing, trained_state
from training.trainer.optimizer import set_rates
from training.trainer.report import Reporter
from training.trainer.rows import Row
from training.trainer.status import StatusFile, now
from training.trainer.step import Score
from training.trainer.watch import MAX_ROLLBACKS, Pace, Unhealthy, Watch, check_finite

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator  # type: ignore[import-untyped]

PROGRESS = "progress.json"
BEST = "best.safetensors"
RATE_SMOOTHING = 0.9
"""of the time that a step takes, for the estimate of the rest"""


class Rebuild(Exception):
    """The model must be loaded anew to save memory in the way of `thrift`."""

    def __init__(self, thrift: Thrift) -> None:
        super().__init__(str(thrift))
        self.thrift = thrift


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
    """What the loop is built from. `loss` is the summed loss of a batch."""

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
    loss: Callable[[torch.nn.Module, Batch], torch.Tensor] = steps.summed_loss


class Loop:
    """One model on its way through the schedule. `run` may be called once."""

    def __init__(self, parts: Parts, schedule: Schedule, state: RunState) -> None:
        self._parts = parts
        self._schedule = schedule
        self.state = state
        self._accelerator = parts.accelerator
        self._lengths = [len(row) for row in parts.train]
        self._saved_at = time.monotonic()
        self._last_save = -1
        self._step_seconds: float | None = None
        self.trained = [weight for weight in parts.model.parameters() if weight.requires_grad]

    def run(self) -> bool:
        """Train to the end; False when asked to stop before it. Raises TrainerError, Rebuild."""
        self._resume()
        self._parts.reporter.begin(self.state.step, self._schedule.steps)
        while self.state.step < self._schedule.steps:
            if self._stops():
                self._save()
                return False
            try:
                self._advance()
            except Unhealthy as trouble:
                self._roll_back(trouble)
                continue
            if self._stale():
                self._parts.reporter.say(f"no gain in {self.state.misses} looks: ending at step {self.state.step}")
                break
            self._save_when_due()
        self._save()
        return True

    def best_weights(self) -> dict[str, torch.Tensor]:
        """The trained weights at the best look at the validation cases; without any, the present ones."""
        if self.state.best is None:
            return trained_state(self.whole_model())
        from safetensors.torch import load_file

        return load_file(self._best_file)

    def whole_model(self) -> torch.nn.Module:
        """The model without what accelerate wrapped around it."""
        model: torch.nn.Module = self._accelerator.unwrap_model(self._parts.model)
        return model

    def rank(self) -> int:
        """The adapter's rank, which a continued adapter brings with it."""
        inner: Any = self.whole_model()
        rank: int = inner.peft_config["default"].r
        return rank

    @property
    def _best_file(self) -> Path:
        return self._parts.config.output / BEST

    # steps

    def _advance(self) -> None:
        state, begun = self.state, time.monotonic()
        rate = set_rates(self._parts.optimizer, state.pace.at(state.step))
        rows = self._schedule.rows_of(state.step)
        loss, gradient = self._guarded(lambda: self._step(rows))
        state.watch.see(loss, gradient)
        tokens = sum(self._lengths[index] for index in rows)
        state.step += 1
        state.tokens += tokens
        values = {
            "epoch": self._schedule.epoch_at(state.step),
            "loss": loss,
            "learning_rate": rate,
            "grad_norm": gradient,
        }
        if self._looks_now():
            values |= self._look()
        seconds = time.monotonic() - begun
        state.seconds += seconds
        values |= {"tokens_per_second": tokens / seconds, "samples_per_second": len(rows) / seconds}
        values["gpu_memory_bytes"] = peak_memory(self._accelerator.device)
        self._tell(values, seconds)

    def _step(self, rows: Sequence[int]) -> tuple[float, float]:
        """One update of the weights: the mean loss over all tokens that count, and the gradient's norm."""
        parts, accelerator = self._parts, self._accelerator
        total = sum(counted(parts.train[index]) for index in rows)
        groups = share(
            rows, self._lengths, self.state.thrift.micro_tokens, accelerator.process_index, accelerator.num_processes
        )
        parts.optimizer.zero_grad()
        summed = 0.0
        for number, group in enumerate(groups, 1):
            accelerator.sync_gradients = number == len(groups)
            summed += self._backward([parts.train[index] for index in group], accelerator.num_processes / total)
        loss = self._sum(summed) / total
        norm: Any = accelerator.clip_grad_norm_(self.trained, parts.config.clip * self.state.pace.clip)
        gradient = float(norm) if norm is not None else 0.0
        check_finite(loss, gradient)
        parts.optimizer.step()
        return loss, gradient

    def _backward(self, rows: Sequence[Row], scale: float) -> float:
        parts, accelerator = self._parts, self._accelerator
        batch = self._batch(rows).to(accelerator.device)
        try:
            with self._apart(), steps.offloaded(offload=self.state.thrift.offload):
                with accelerator.autocast():
                    loss = parts.loss(parts.model, batch)
                accelerator.backward(loss * scale)
        except Exception as error:
            if is_out_of_memory(error):
                raise _TooMuch(sum(batch.lengths), len(rows)) from error
            raise
        return float(loss.detach())

    def _apart(self) -> Any:
        """No exchange of gradients before the last micro-batch of a step."""
        from contextlib import nullcontext

        accelerator = self._accelerator
        return nullcontext() if accelerator.sync_gradients else accelerator.no_sync(self._parts.model)

    def _batch(self, rows: Sequence[Row]) -> Batch:
        if not rows:
            return idle(self._parts.pad)
        return packed(rows) if self._parts.config.packing else padded(rows, self._parts.pad)

    # memory

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """Do `work`, again with less memory each time that it runs out. Raises OutOfMemory, Rebuild."""
        while True:
            trouble: BaseException | None = None
            try:
                return work()
            except _TooMuch as error:
                held, rows, trouble = error.tokens, error.rows, error.__cause__
            self._parts.optimizer.zero_grad()
            free_memory()
            self._save_memory(held, rows, trouble)

    def _save_memory(self, held: int, rows: int, trouble: BaseException | None) -> None:
        if self._accelerator.num_processes > 1:
            raise OutOfMemory(
                f"out of memory with {held} tokens in a process; start again with micro_tokens below {held}"
            ) from trouble
        state = self.state
        on_gpu = self._accelerator.device.type == "cuda"
        thrift = (
            state.thrift.halved(held)
            if rows > 1
            else state.thrift.next(on_gpu=on_gpu, may_quantise=self._parts.config.method != "full")
        )
        if thrift is None:
            raise OutOfMemory(
                f"out of memory with one row of {held} tokens and {state.thrift}; "
                "lower max_length or the rank, or take a smaller base"
            ) from trouble
        self._parts.reporter.say(f"out of memory at step {state.step}: going on with {thrift}")
        quantise = thrift.four_bit and not state.thrift.four_bit
        if thrift.checkpointing:
            set_checkpointing(self.whole_model())
        state.thrift = thrift
        if quantise:
            self._save()
            raise Rebuild(thrift)

    # validation

    def _looks_now(self) -> bool:
        evaluations = self._parts.config.evaluations
        if not evaluations or not self._parts.validation:
            return False
        every = max(1, math.ceil(self._schedule.steps / evaluations))
        return self.state.step % every == 0 or self.state.step == self._schedule.steps

    def _look(self) -> dict[str, float]:
        score: Score = self._guarded(self._score)
        state = self.state
        if score.beats(state.best):
            state.best, state.best_step, state.misses = score, state.step, 0
            self._keep_best()
        else:
            state.misses += 1
        return {"validation_loss": score.loss, "validation_exact": score.exact}

    def _score(self) -> Score:
        parts, accelerator = self._parts, self._accelerator
        rows = parts.validation
        lengths = [len(row) for row in rows]
        order = sorted(range(len(rows)), key=lengths.__getitem__)
        groups = share(
            order, lengths, self.state.thrift.micro_tokens, accelerator.process_index, accelerator.num_processes
        )
        loss = right = 0.0
        parts.model.eval()
        try:
            for group in groups:
                found = self._scored([rows[index] for index in group])
                loss, right = loss + found[0], right + found[1]
        finally:
            parts.model.train()
        return Score(self._sum(loss) / sum(map(counted, rows)), self._sum(right) / len(rows))

    def _scored(self, rows: Sequence[Row]) -> tuple[float, float]:
        batch = padded(rows, self._parts.pad) if rows else idle(self._parts.pad)
        try:
            with self._accelerator.autocast():
                loss, right = steps.scores(self._parts.model, batch.to(self._accelerator.device))
        except Exception as error:
            if is_out_of_memory(error):
                raise _TooMuch(sum(batch.lengths), len(rows)) from error
            raise
        return float(loss), float(right) if rows else 0.0

    def _stale(self) -> bool:
        patience = self._parts.config.early_stopping
        return 0 < patience <= self.state.misses

    def _keep_best(self) -> None:
        from safetensors.torch import save_file

        weights = {name: weight.contiguous() for name, weight in trained_state(self.whole_model()).items()}
        if self._accelerator.is_main_process:
            partial = self._best_file.with_suffix(".part")
            save_file(weights, partial)
            partial.replace(self._best_file)

    # checkpoints

    def _resume(self) -> None:
        """Go on from the last good checkpoint; without one, write the first."""
        found = self._parts.checkpoints.newest()
        if found is None:
            self._save()
        else:
            self._restore(found)
            self._parts.reporter.say(f"going on from step {self.state.step}")

    def _restore(self, found: Checkpoint) -> None:
        self._accelerator.load_state(str(found.folder))
        thrift = self.state.thrift
        self.state = RunState.load(json.loads((found.folder / PROGRESS).read_bytes()))
        self.state.thrift = thrift
        self._last_save = self.state.step

    def _save_when_due(self) -> None:
        every = self._parts.config.checkpoint_steps
        waited = time.monotonic() - self._saved_at
        due = self.state.step % every == 0 if every else self._agreed(waited >= self._parts.config.checkpoint_s)
        if due and self.state.watch.healthy:
            self._save()

    def _save(self) -> None:
        if self._last_save == self.state.step:
            return
        self._parts.checkpoints.write(self.state.step, self._fill, self._accelerator.wait_for_everyone)
        self._saved_at, self._last_save = time.monotonic(), self.state.step
        self._parts.status.update(checkpoint_at=now())

    def _fill(self, folder: Path) -> None:
        self._accelerator.save_state(str(folder))
        if self._accelerator.is_main_process:
            (folder / PROGRESS).write_text(json.dumps(self.state.dump()), encoding="utf-8")

    def _roll_back(self, trouble: Unhealthy) -> None:
        """Back to the last good checkpoint, with a tenth of the rate, a new warm-up and tighter clipping."""
        pace, at = self.state.pace, self.state.step
        found = self._parts.checkpoints.newest()
        if found is None or pace.rollbacks >= MAX_ROLLBACKS:
            raise TrainingDiverged(
                f"step {at}: {trouble}, also after {pace.rollbacks} rollbacks; look at the data or lower learning_rate"
            )
        self._restore(found)
        self.state.pace = pace.calmer(self.state.step)
        self._parts.optimizer.zero_grad()
        self._parts.reporter.say(f"step {at}: {trouble}: back to step {self.state.step} with a tenth of the rate")

    # others

    def _stops(self) -> bool:
        return self._agreed(self._parts.stopping())

    def _agreed(self, mine: bool) -> bool:
        """Whether any process says so."""
        return self._sum(float(mine)) > 0

    def _sum(self, value: float) -> float:
        if self._accelerator.num_processes == 1:
            return value
        import torch

        total: Any = self._accelerator.reduce(torch.tensor(value, device=self._accelerator.device), "sum")
        return float(total)

    def _tell(self, values: dict[str, float], seconds: float) -> None:
        state = self.state
        before = self._step_seconds
        self._step_seconds = seconds if before is None else RATE_SMOOTHING * before + (1 - RATE_SMOOTHING) * seconds
        shown = state.watch.smoothed or 0.0
        self._parts.reporter.step(state.step, values, shown)
        self._parts.status.update(
            step=state.step,
            epoch=round(values["epoch"], 3),
            loss=round(shown, 5),
            learning_rate=values["learning_rate"],
            eta_seconds=round(self._step_seconds * (self._schedule.steps - state.step), 1),
        )


class _TooMuch(TrainerError):
    """Memory ran out in a pass over so many tokens and rows."""

    def __init__(self, tokens: int, rows: int) -> None:
        super().__init__(f"out of memory with {tokens} tokens")
        self.tokens = tokens
        self.rows = rows


def peak_memory(device: torch.device) -> int:
    """Most bytes that the GPU has held for this process; 0 on a processor."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0

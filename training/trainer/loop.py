"""The loop: steps, looks at the validation cases, checkpoints, and the ways out of trouble."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.trainer.batches import Schedule
from training.trainer.checkpoints import Checkpoint
from training.trainer.errors import TrainingDiverged
from training.trainer.model import trained_state
from training.trainer.optimizer import set_rates
from training.trainer.passes import Passes, Rebuild
from training.trainer.state import Parts, RunState
from training.trainer.status import now
from training.trainer.watch import MAX_ROLLBACKS, Unhealthy

if TYPE_CHECKING:
    import torch

PROGRESS = "progress.json"
BEST = "best.safetensors"
RIGHT_LOOKS = 2
"""looks on end with every validation case right that end a run: nothing is left to gain"""
RATE_SMOOTHING = 0.9
"""of the time that a step takes, for the estimate of the rest"""


class Loop:
    """One model on its way through the schedule. `run` may be called once."""

    def __init__(self, parts: Parts, schedule: Schedule, state: RunState) -> None:
        self._parts = parts
        self._schedule = schedule
        self.state = state
        self._accelerator = parts.accelerator
        self._saved_at = time.monotonic()
        self._last_save = -1
        self._step_seconds: float | None = None
        self.passes = Passes(parts, state.thrift)

    def run(self) -> bool:
        """Train to the end; False when asked to stop before it. Raises TrainerError, Rebuild."""
        self._resume()
        self._parts.reporter.begin(self.state.step, self._schedule.steps)
        while self.state.step < self._schedule.steps and not self._stale():
            if self._stops():
                self._save()
                return False
            try:
                self._advance()
            except Unhealthy as trouble:
                self._roll_back(trouble)
                continue
            except Rebuild:
                self._save()
                raise
            self._save_when_due()
        if self._stale():
            why = (
                "all cases right twice" if self.state.right >= RIGHT_LOOKS else f"no gain in {self.state.misses} looks"
            )
            self._parts.reporter.say(f"{why}: ending at step {self.state.step}")
        self._save()
        return True

    def best_weights(self) -> dict[str, torch.Tensor]:
        """The trained weights at the best look at the validation cases; without any, the present ones."""
        if self.state.best is None:
            return self._trained_weights()
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
        loss, gradient = self.passes.step(rows, self._parts.config.clip * state.pace.clip)
        state.watch.see(loss, gradient)
        tokens = sum(len(self._parts.train[index]) for index in rows)
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

    # validation

    def _looks_now(self) -> bool:
        evaluations = self._parts.config.evaluations
        if not evaluations or not self._parts.validation:
            return False
        every = max(1, math.ceil(self._schedule.steps / evaluations))
        return self.state.step % every == 0 or self.state.step == self._schedule.steps

    def _look(self) -> dict[str, float]:
        score = self.passes.score()
        if self.state.look(score):
            self._keep_best()
        return {"validation_loss": score.loss, "validation_exact": score.exact}

    def _stale(self) -> bool:
        """Whether further steps are vain. Where all cases are right, one look more shows that it was no chance."""
        patience = self._parts.config.early_stopping
        return patience > 0 and (self.state.right >= RIGHT_LOOKS or self.state.misses >= patience)

    def _keep_best(self) -> None:
        from safetensors.torch import save_file

        weights = {name: weight.contiguous() for name, weight in self._trained_weights().items()}
        if not self._accelerator.is_main_process:
            return
        partial = self._best_file.with_suffix(".part")
        while True:
            try:
                save_file(weights, partial)
                break
            except Exception as error:
                self._parts.checkpoints.make_room(error)
        partial.replace(self._best_file)

    def _trained_weights(self) -> dict[str, torch.Tensor]:
        """The trained weights, whole also where FSDP or DeepSpeed keep a part in each process."""
        if self._accelerator.distributed_type.value not in {"FSDP", "DEEPSPEED"}:
            return trained_state(self.whole_model())
        names = trained_state(self.whole_model())
        whole = self._accelerator.get_state_dict(self._parts.model)
        return {name: whole[name] for name in names if name in whole}

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
        self.state = RunState.load(json.loads((found.folder / PROGRESS).read_bytes()))
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
        self.state.thrift = self.passes.thrift
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
        best, best_step = self.state.best, self.state.best_step
        self._restore(found)
        self.state.best, self.state.best_step = best, best_step  # as their file does, they outlive what came after
        self.state.pace = pace.calmer(self.state.step)
        self._parts.optimizer.zero_grad()
        self._parts.reporter.say(f"step {at}: {trouble}: back to step {self.state.step} with a tenth of the rate")

    # others

    def _stops(self) -> bool:
        return self._agreed(self._parts.stopping())

    def _agreed(self, mine: bool) -> bool:
        """Whether any process says so."""
        return self.passes.sum(float(mine)) > 0

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


def peak_memory(device: torch.device) -> int:
    """Most bytes that the GPU has held for this process; 0 on a processor."""
    import torch

    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0

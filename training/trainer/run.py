"""A whole run, from a configuration to an adapter: what the process does, callable from Python too."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters_registry.errors import SourceError
from training.gate.template import SAMPLES, record_template
from training.trainer import model as models
from training.trainer.batches import Batch, Schedule
from training.trainer.checkpoints import Checkpoints, disk_is_full
from training.trainer.config import TrainingConfig
from training.trainer.errors import DiskFull, OutOfMemory, TrainerError, TrainingRefused
from training.trainer.loop import PROGRESS, Loop, peak_memory
from training.trainer.memory import Thrift, free_bytes, free_memory, is_out_of_memory
from training.trainer.optimizer import make_optimizer
from training.trainer.passes import Rebuild
from training.trainer.replay import CHECKPOINTS, Line, Stopped, replayed_lines, weighed_as_cases
from training.trainer.report import Reporter, draw_loss, installed
from training.trainer.resolve import BaseFacts, resolve
from training.trainer.rows import ChatFormat, Encoded, read_lines
from training.trainer.state import Parts, RunState
from training.trainer.status import StatusFile, write_json
from training.trainer.step import summed_loss
from training.trainer.watch import Pace

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from rich.console import Console

RESOLVED = "resolved.json"
RESULT = "result.json"
PROJECT = "loradock"
"""under which trackers file their runs"""


def _never() -> bool:
    return False


@dataclass(frozen=True)
class Workshop:
    """The exchangeable parts of a run: who makes the model, its loss and its checkpoints, and who may end it."""

    load_model: Callable[[TrainingConfig, Thrift, torch.device], torch.nn.Module] = models.load_model
    loss: Callable[[torch.nn.Module, Batch], torch.Tensor] = summed_loss
    checkpoints: Callable[..., Checkpoints] = Checkpoints
    stopping: Callable[[], bool] = _never


@dataclass(frozen=True, slots=True)
class Material:
    """What is learned from, as tokens, and the token that fills up. The last `replayed` of `train` are no cases."""

    train: Encoded
    validation: Encoded
    pad: int
    replayed: int = 0


def train(config: TrainingConfig, console: Console, workshop: Workshop | None = None) -> dict[str, Any] | None:
    """Train as `config` says, from the last good checkpoint in its folder on; the content of `result.json`.

    None when it was asked to stop before the end. Raises TrainerError; the status file tells the same.
    """
    status = StatusFile(config.output, owner=int(os.environ.get("RANK", "0")) == 0)
    status.update(state="starting", running=True, error=None)
    try:
        result = _train(config, console, workshop or Workshop(), status)
    except TrainerError as error:
        status.end("failed", str(error))
        raise
    except BaseException as error:
        if disk_is_full(error, config.output):
            full = DiskFull(f"no room in {config.output}; the last good checkpoint is kept")
            status.end("failed", str(full))
            raise full from error
        status.end("failed", f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")
        raise
    status.end("stopped" if result is None else "done")
    return result


def _train(config: TrainingConfig, console: Console, workshop: Workshop, status: StatusFile) -> dict[str, Any] | None:
    accelerator = make_accelerator(config)
    try:
        return _trained(config, accelerator, console, workshop, status)
    finally:
        accelerator.end_training()


def _trained(
    given: TrainingConfig, accelerator: Accelerator, console: Console, workshop: Workshop, status: StatusFile
) -> dict[str, Any] | None:
    begun = time.monotonic()
    on_gpu = accelerator.device.type == "cuda"
    base = _local(given)
    if base.packing is None:
        base = base.model_copy(update={"packing": models.has_flash_attention(accelerator.device)})
    tokenizer = models.load_tokenizer(base.base)
    try:
        replayed = replayed_lines(base, tokenizer, accelerator, workshop.stopping)
    except Stopped:
        return None
    pad = tokenizer.pad_token_id or 0
    config, material = _prepare(base, ChatFormat(tokenizer), pad, replayed, on_gpu=on_gpu)
    lengths = [len(row) for row in material.train.rows]
    schedule = Schedule(lengths, config.batch_tokens or 0, config.seed, config.epochs or 1.0, config.max_steps)
    if accelerator.is_main_process:
        write_json(config.output / RESOLVED, config.model_dump(mode="json"))
    accelerator.init_trackers(PROJECT, config=_plain(config))
    status.update(state="running", total_steps=schedule.steps, total_epochs=config.epochs)
    reporter = Reporter(config.output, accelerator, console)
    reporter.say(_introduction(config, material, schedule, accelerator))
    bench = _Bench(config, material, schedule, accelerator, workshop, reporter, status)
    try:
        loop, finished = bench.work()
    finally:
        reporter.end()
    if not finished:
        return None
    weights = loop.best_weights()
    result = _measures(loop, config, material, accelerator) | {"seconds": round(time.monotonic() - begun, 2)}
    if accelerator.is_main_process:
        folder = models.save_output(loop.whole_model(), tokenizer, weights, config)
        draw_loss(config.output)
        result[folder.name] = str(folder)
        write_json(config.output / RESULT, result)
    accelerator.wait_for_everyone()
    return result


def make_accelerator(config: TrainingConfig) -> Accelerator:
    """Device, precision and processes. Raises TrainingRefused for a GPU that is not there."""
    import torch
    from accelerate import Accelerator
    from accelerate.utils import ProjectConfiguration  # type: ignore[import-untyped]

    if config.device == "cuda" and not torch.cuda.is_available():
        raise TrainingRefused("device is cuda, but torch finds no GPU")
    on_cpu = config.device == "cpu" or not torch.cuda.is_available()
    if on_cpu and config.threads:
        torch.set_num_threads(config.threads)
    trackers = installed(config.report_to)
    missing = sorted(set(config.report_to) - {*trackers, "tensorboard"})
    if missing:
        raise TrainingRefused(f"report_to names {', '.join(missing)}, which is not installed")
    folders = ProjectConfiguration(project_dir=str(config.output), logging_dir=str(config.output / "tensorboard"))
    return Accelerator(
        cpu=on_cpu,
        mixed_precision="no" if on_cpu else "bf16",
        log_with=trackers or None,
        project_config=folders,
        step_scheduler_with_optimizer=False,
    )


def _local(config: TrainingConfig) -> TrainingConfig:
    """With the base as a folder: a hub id is fetched, or found in the cache. Raises TrainingRefused."""
    if Path(config.base).is_dir():
        return config
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        folder = snapshot_download(
            config.base, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
        )
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise TrainingRefused(f"base {config.base!r} is no folder and cannot be fetched: {reason}") from error
    return config.model_copy(update={"base": folder, "base_name": config.base_name or config.base})


def _prepare(
    config: TrainingConfig, chats: ChatFormat, pad: int, replayed: Sequence[Line], *, on_gpu: bool
) -> tuple[TrainingConfig, Material]:
    """Tokens of the dataset and the resolved configuration. Raises TrainingRefused for what cannot be learned."""
    try:
        facts = BaseFacts.from_folder(Path(config.base))
    except (SourceError, KeyError) as error:
        raise TrainingRefused(f"base {config.base!r} cannot be trained: {error}") from error
    length = min(config.max_length or 2048, facts.context or 1 << 30)
    train = chats.encode(read_lines(config.dataset / "train.jsonl"), length)
    held = config.dataset / "validation.jsonl"
    validation = chats.encode(read_lines(held) if held.exists() else (), length)
    if not train.rows:
        left_out = f"; {train.too_long} rows are longer than {length} tokens" if train.too_long else ""
        raise TrainingRefused(f"{config.dataset} holds nothing to train on{left_out}")
    _record_rendering(config, chats)
    more = chats.encode(replayed, length)
    both = replace(train, rows=[*train.rows, *weighed_as_cases(more.rows, train.rows)])
    return (
        resolve(config, None, facts, train.facts(), on_gpu=on_gpu),
        Material(both, validation, pad, replayed=len(more.rows)),
    )


def _record_rendering(config: TrainingConfig, chats: ChatFormat) -> None:
    """Leave beside the adapter how rows were rendered: the gate has the endpoint render the same ones."""
    lines = list(islice(read_lines(config.dataset / "train.jsonl"), SAMPLES))
    rows = chats.encode(lines, max_length=sys.maxsize).rows
    record_template(chats.template, lines, [(row.ids[: row.prompt], row.ids) for row in rows]).write(config.output)


@dataclass
class _Bench:
    """Where the model is made, and made anew when memory asks for it."""

    config: TrainingConfig
    material: Material
    schedule: Schedule
    accelerator: Accelerator
    workshop: Workshop
    reporter: Reporter
    status: StatusFile

    def work(self) -> tuple[Loop, bool]:
        """The loop at its end, and whether that is the end of the run. Raises TrainerError."""
        config, owner = self.config, self.accelerator.is_main_process
        checkpoints = self.workshop.checkpoints(config.output / CHECKPOINTS, config.keep_checkpoints, owner=owner)
        self.accelerator.wait_for_everyone()  # all go on from the same one, once the first has swept up
        thrift = self._first_thrift(checkpoints)
        models.keep_trained_only(self.accelerator)
        while True:
            try:
                loop = self._loop(thrift, checkpoints)
                return loop, loop.run()
            except Rebuild as wish:
                thrift = wish.thrift
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                thrift = self._thrift_to_load(thrift, error)
            self.accelerator.free_memory()
            free_memory()

    def _first_thrift(self, checkpoints: Checkpoints) -> Thrift:
        found = checkpoints.newest()
        if found is not None:
            return RunState.load(json.loads((found.folder / PROGRESS).read_bytes())).thrift
        config = self.config
        four_bit = config.method == "qlora" and self.accelerator.device.type == "cuda"
        return Thrift(config.micro_tokens or 1, bool(config.gradient_checkpointing), four_bit)

    def _thrift_to_load(self, thrift: Thrift, error: BaseException) -> Thrift:
        """The next way of saving when the weights alone do not fit."""
        on_gpu = self.accelerator.device.type == "cuda"
        saved = thrift.next(on_gpu=on_gpu, may_quantise=self.config.method != "full")
        if saved is None:
            raise OutOfMemory(f"the base {self.config.base!r} does not fit into memory with {thrift}") from error
        self.reporter.say(f"out of memory while loading: going on with {saved}")
        return saved

    def _may_be_fast(self) -> bool:
        """The fast path needs whole weights on this process's GPU, and the modules that transformers made."""
        whole = self.accelerator.distributed_type.value in {"NO", "MULTI_GPU"}
        return whole and self.config.backend == "native" and self.accelerator.device.type == "cuda"

    def _loop(self, thrift: Thrift, checkpoints: Checkpoints) -> Loop:
        from accelerate.utils import set_seed

        config, accelerator = self.config, self.accelerator
        set_seed(config.seed)
        model = self.workshop.load_model(config, thrift, accelerator.device)
        fast = self._may_be_fast() and models.speed_up(model, config, thrift, free_bytes(accelerator.device))
        if thrift.checkpointing and config.backend == "native" and not fast:
            models.set_checkpointing(model)
        model, optimizer = accelerator.prepare(model, make_optimizer(model, config))
        parts = Parts(
            config=config,
            accelerator=accelerator,
            model=model,
            optimizer=optimizer,
            train=self.material.train.rows,
            validation=self.material.validation.rows,
            pad=self.material.pad,
            checkpoints=checkpoints,
            reporter=self.reporter,
            status=self.status,
            stopping=self.workshop.stopping,
            loss=self.workshop.loss,
        )
        return Loop(parts, self.schedule, RunState(thrift, Pace(self.schedule.steps, config.warmup)))


def _introduction(config: TrainingConfig, material: Material, schedule: Schedule, accelerator: Accelerator) -> str:
    where = f"{accelerator.num_processes} x {accelerator.device.type}"
    rows = len(material.train.rows)
    lines = [f"{config.method} of {config.base_name or config.base} on {where}: {rows} rows, {schedule.steps} steps"]
    if config.method == "qlora" and accelerator.device.type != "cuda":
        lines.append("4-bit weights need a GPU: training LoRA on float32 weights instead")
    if material.replayed:
        lines.append(f"{material.replayed} of them the base has said itself, so that less of the rest is forgotten")
    if left_out := material.train.too_long:
        lines.append(f"{left_out} rows are longer than {config.max_length} tokens and are left out")
    return "\n".join(lines)


def _measures(loop: Loop, config: TrainingConfig, material: Material, accelerator: Accelerator) -> dict[str, Any]:
    from training.trainer.fast import is_accelerated

    state = loop.state
    full = config.method == "full"
    on_gpu = accelerator.device.type == "cuda"
    host_peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "method": "lora" if config.method == "qlora" and not on_gpu else config.method,
        "steps": state.step,
        "loss": state.watch.smoothed,
        "validation_loss": state.best.loss if state.best else None,
        "validation_exact": state.best.exact if state.best else None,
        "best_step": state.best_step if state.best else state.step,
        "rows": len(material.train.rows),
        "replayed": material.replayed,
        "left_out": material.train.too_long,
        "tokens": state.tokens,
        "training_seconds": round(state.seconds, 2),
        "tokens_per_second": round(state.tokens / state.seconds, 1) if state.seconds else 0.0,
        "peak_memory_bytes": peak_memory(accelerator.device) if on_gpu else host_peak,
        "rank": None if full else loop.rank(),
        "alpha": None if full else config.alpha,
        "trained_parameters": sum(weight.numel() for weight in loop.passes.trained),
        "rollbacks": state.pace.rollbacks,
        "memory": str(loop.passes.thrift),
        "fast": is_accelerated(loop.whole_model()),
    }


def _plain(config: TrainingConfig) -> dict[str, Any]:
    """What trackers take as hyperparameters."""
    values = config.model_dump(mode="json")
    return {key: value for key, value in values.items() if isinstance(value, int | float | str)}

"""What a run is told: `config.json` in the job's folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from configs.settings import ALLOWED_RANKS, one_line
from configs.training import Backend, Method, Tracker, TrainingPreset
from training.trainer.errors import TrainingRefused

FILE = "config.json"
UNSERVED = {
    "prompt": "prompt tuning",
    "p-tuning": "prompt tuning",
    "prompt-tuning": "prompt tuning",
    "prefix": "prefix tuning",
    "prefix-tuning": "prefix tuning",
}


class Launcher(BaseModel):
    """How many processes train together, through accelerate's launcher; `main_address` is host:port of machine 0."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    processes: int = Field(1, ge=1, description="processes in all, one a GPU")
    machines: int = Field(1, ge=1, description="hosts; each runs the same command with its own machine_rank")
    machine_rank: int = Field(0, ge=0, description="which of the hosts this one is")
    main_address: str | None = Field(None, pattern=r"^[^:\s]+:\d+$", description="host:port of machine 0")
    strategy: Literal["ddp", "fsdp", "zero2", "zero3"] = Field("ddp", description="what each process holds")

    @model_validator(mode="after")
    def _machines_fit(self) -> Self:
        if self.processes % self.machines:
            raise ValueError("processes must be a multiple of machines")
        if self.machine_rank >= self.machines:
            raise ValueError("machine_rank must be below machines")
        if self.machines > 1 and self.main_address is None:
            raise ValueError("several machines need main_address")
        return self


_NOT_THE_TRAINERS = {"enabled", "record", "reward_quantile", "general_share", "label_ratio", "suites"}
"""keys of a preset that tell which cases are kept and learned, and how a candidate is judged"""


class TrainingConfig(BaseModel):
    """One run. None means: chosen by `resolve` from the base, the cases and the machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base: str = Field(min_length=1, description="folder or hub id of the base model")
    base_name: str | None = Field(None, description="name of the base that the adapter records; default: `base`")
    dataset: Path = Field(description="folder with train.jsonl and validation.jsonl")
    output: Path = Field(description="folder of the job")

    method: Method = Field("qlora", description="qlora, lora or full")
    backend: Backend = Field("native", description="who prepares the model")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where to train")
    threads: int | None = Field(None, ge=1, description="processor threads; default: torch's choice")

    rank: int | None = Field(None, description="LoRA rank")
    max_rank: int = Field(64, description="largest rank that the engine takes")
    alpha: float | None = Field(None, gt=0, description="LoRA alpha; default: twice the rank")
    dropout: float = Field(0.05, ge=0, lt=1, description="LoRA dropout")
    continue_from: Path | None = Field(None, description="PEFT folder to start from instead of nothing")

    learning_rate: float | None = Field(None, gt=0, description="peak rate of lora_A, and of all weights in full")
    learning_rate_multiplier: float = Field(1.0, gt=0, description="scales the rate that is chosen")
    lora_plus_ratio: float | None = Field(None, ge=1, description="rate of lora_B over that of lora_A")
    weight_decay: float = Field(0.01, ge=0, description="decoupled weight decay of matrices")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of the steps in which the rate rises")
    clip: float = Field(1.0, gt=0, description="largest norm of the gradient")

    epochs: float | None = Field(None, gt=0, description="passes over the cases")
    max_steps: int | None = Field(None, ge=1, description="end after as many steps, if that comes first")
    batch_tokens: int | None = Field(None, ge=16, description="tokens of one step, over all processes")
    micro_tokens: int | None = Field(None, ge=16, description="tokens that one process holds at once")
    max_length: int | None = Field(None, ge=16, description="tokens of a row; longer ones are left out and counted")
    packing: bool | None = Field(None, description="rows behind one another; default: with flash attention on a GPU")
    gradient_checkpointing: bool | None = Field(None, description="recompute activations; default: on GPUs")
    seed: int = Field(20, ge=0, description="of weights, dropout and order")

    evaluations: int = Field(10, ge=0, description="looks at the validation cases in a run; 0: never")
    early_stopping: int = Field(
        3, ge=0, description="looks without gain that end the run, as do two with all right; 0: never"
    )
    checkpoint_s: float = Field(30.0, gt=0, description="time between checkpoints")
    checkpoint_steps: int | None = Field(None, ge=1, description="steps between checkpoints, instead of a time")
    keep_checkpoints: int = Field(2, ge=2, description="checkpoints that are kept")

    report_to: tuple[Tracker, ...] = Field(("tensorboard",), description="where metrics go besides metrics.jsonl")
    launcher: Launcher = Launcher()

    @field_validator("method", mode="before")
    @classmethod
    def _method_is_served(cls, method: Any) -> Any:
        if (what := UNSERVED.get(str(method).lower())) is not None:
            raise ValueError(f"{what} cannot be served: the engine takes LoRA adapters and whole models only")
        return method

    @field_validator("rank", "max_rank")
    @classmethod
    def _rank_is_allowed(cls, rank: int | None) -> int | None:
        if rank is not None and rank not in ALLOWED_RANKS:
            raise ValueError(f"must be one of {', '.join(map(str, ALLOWED_RANKS))}")
        return rank

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        if self.rank is not None and self.rank > self.max_rank:
            raise ValueError(f"rank {self.rank} is above the engine's max_lora_rank of {self.max_rank}")
        if self.method == "full" and self.continue_from is not None:
            raise ValueError("continue_from names an adapter, which method full does not train")
        if self.backend == "unsloth" and self.launcher.processes > 1:
            raise ValueError("backend unsloth trains in one process")
        return self

    @classmethod
    def from_preset(cls, preset: TrainingPreset, **fields: Any) -> Self:
        """The preset's choices with `fields` over them. Raises TrainingRefused with one line."""
        chosen = preset.model_dump(exclude=_NOT_THE_TRAINERS, exclude_none=True)
        return cls.checked(chosen | fields)

    @classmethod
    def checked(cls, values: dict[str, Any]) -> Self:
        """A configuration from plain values. Raises TrainingRefused with one line."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise TrainingRefused(one_line(error)) from None

    def save(self) -> Path:
        """Write `config.json` to the job's folder, which is made; the file."""
        self.output.mkdir(parents=True, exist_ok=True)
        file = self.output / FILE
        file.write_text(self.model_dump_json(indent=2, exclude_defaults=True) + "\n", encoding="utf-8")
        return file


def load_config(folder: Path) -> TrainingConfig:
    """The configuration in `folder`, whose `output` is that folder. Raises TrainingRefused with one line."""
    file = folder / FILE
    try:
        values = json.loads(file.read_bytes())
    except OSError as error:
        raise TrainingRefused(f"cannot read {file}: {error.strerror}") from None
    except ValueError as error:
        raise TrainingRefused(f"{file} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise TrainingRefused(f"{file} is not a JSON object")
    return TrainingConfig.checked(values | {"output": folder})

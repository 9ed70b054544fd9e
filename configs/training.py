"""Settings of the learning half: what becomes a case, when a job starts, how a candidate is judged, what it may cost.

`TrainingSettings` is one section of the settings; `TrainingPreset` is one section of an agent's preset.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Method = Literal["qlora", "lora", "full"]
Backend = Literal["native", "unsloth"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]


class TrainingSettings(BaseModel):
    """How the CaseBank, the triggers, the gate and the jobs behave. Times end in their unit, shares are 0 to 1."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    record: bool = Field(True, description="keep served requests as cases")
    redact: bool = Field(False, description="replace addresses, numbers of people and secrets in cases by their kind")
    retention_days: float | None = Field(None, gt=0, description="age at which cases are deleted; default: never")
    worker: bool = Field(True, description="run jobs and triggers beside `loradock serve`")

    reward_threshold: float = Field(0.7, ge=0, le=1, description="least reward of a case that is learned from")
    holdout_share: float = Field(0.2, gt=0, lt=1, description="share of cases kept for the gate, by hash")
    trigger_min_cases: int = Field(100, ge=1, description="least number of new eligible cases that starts a job")
    trigger_growth: float = Field(0.2, ge=0, description="the same as a share of the cases of the last job")
    cooldown_s: float = Field(3600.0, ge=0, description="least time between the starts of two jobs of an agent")
    watch_s: float = Field(86_400.0, ge=0, description="how long a new champion is watched, to roll it back; 0: not")
    poll_s: float = Field(5.0, gt=0, description="how often the worker looks for triggers and jobs")
    dry_run: bool = Field(False, description="say what the triggers would start, and start nothing")

    canary_share: float = Field(0.1, gt=0, le=1, description="share of an agent's sessions that a canary answers")
    canary_requests: int = Field(200, ge=1, description="rewarded requests of the canary that end the test")
    canary_timeout_s: float = Field(86_400.0, ge=0, description="longest canary; then the gate's verdict stands")
    general_loss: float = Field(
        0.01, ge=0, le=1, description="most that a candidate may lose on the general set and on suites"
    )
    suites: tuple[Path, ...] = Field((), description="JSONL files of questions on which no agent's candidate may lose")

    usd_per_gpu_hour: float = Field(0.5, ge=0, description="price of a GPU hour, for costs and budgets")
    usd_per_cpu_hour: float = Field(0.0, ge=0, description="price of an hour of a job without a GPU")
    budget_usd: float | None = Field(None, ge=0, description="most that one agent's jobs may cost in 30 days")
    max_attempts: int = Field(3, ge=1, description="how often a job is tried")
    lease_s: float = Field(30.0, ge=2, description="silence of a worker after which another takes its jobs")
    cpu_jobs: int = Field(1, ge=1, description="jobs that run on the processors at once")
    cpu_threads: int | None = Field(
        None, ge=1, description="threads of such a job, at low priority; default: cores less one"
    )


class TrainingPreset(BaseModel):
    """How an agent's adapter is trained; what is not given is chosen from the base, the cases and the machine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(True, description="train this agent by itself when its cases grow")
    record: bool = Field(True, description="keep this agent's requests as cases")
    method: Method = Field("qlora", description="qlora and lora make an adapter, full makes a base tier")
    rank: int | None = Field(None, description="LoRA rank; default: adaptive, within what the engine allows")
    alpha: float | None = Field(None, gt=0, description="LoRA alpha; default: twice the rank")
    dropout: float = Field(0.05, ge=0, lt=1, description="LoRA dropout")
    learning_rate: float | None = Field(None, gt=0, description="peak learning rate; default: by method and base")
    lora_plus_ratio: float | None = Field(None, ge=1, description="rate of lora_B over lora_A; default: by base")
    reward_quantile: float | None = Field(
        None, gt=0, lt=1, description="learn only from answers at or above this quantile of the agent's rewards"
    )
    general_share: float = Field(
        0.5, ge=0, lt=1, description="most general questions mixed in, as a share of the rows learned"
    )
    label_ratio: float | None = Field(
        None, ge=1, description="most rows of one label, as a multiple of the median label's; default: all"
    )
    epochs: float | None = Field(None, gt=0, description="passes over the cases; default: by their number and the base")
    early_stopping: int = Field(
        3,
        ge=0,
        description="looks at the validation cases without gain that end a run (two do with all right); 0: none",
    )
    batch_tokens: int | None = Field(None, ge=16, description="tokens of a step; default: by the machine and the cases")
    max_length: int = Field(2048, ge=16, description="tokens of a training row; longer ones are left out and counted")
    backend: Backend = Field("native", description="who prepares the model; unsloth must be installed")
    suites: tuple[Path, ...] = Field((), description="JSONL files of questions on which a candidate may not lose")
    report_to: tuple[Tracker, ...] = Field(("tensorboard",), description="where metrics go besides metrics.jsonl")

"""The nouns of the queue: what is asked for, what a job is, what it has come to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import IntEnum, StrEnum
from types import MappingProxyType
from typing import Any

from training.casebank.ids import uuid7

CASEBANK = "casebank:"
"""prefix of a source: all eligible cases of the agent that follows"""
FILE = "file-"
"""prefix of a source: an uploaded file, imported for the job's agent first"""


class Priority(IntEnum):
    """Who goes first; the lower number."""

    CRITICAL = 0
    HIGH = 1
    NORMAL = 2
    LOW = 3


class JobState(StrEnum):
    """Where a job stands. The first four are live: such a job may still change what serves."""

    QUEUED = "queued"
    RUNNING = "running"
    GATING = "gating"
    CANARY = "canary"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_live(self) -> bool:
        """Whether the job has not ended."""
        return self in LIVE


LIVE = frozenset({JobState.QUEUED, JobState.RUNNING, JobState.GATING, JobState.CANARY})


def new_id(prefix: str) -> str:
    """`prefix-<32 hex digits>`, which sort by age."""
    return f"{prefix}-{uuid7().hex}"


@dataclass(frozen=True, slots=True)
class JobRequest:
    """A wish for a training run.

    `source` is `casebank:AGENT`, or the id of an uploaded file. `base` is a base's public name; default: that of the
    agent's adapter, else the first engine with slots. `overrides` are fields of the trainer's configuration;
    `learning_rate_multiplier` scales the rate that would be chosen. `origin` is `cli`, `api` or `trigger`.
    """

    agent: str
    source: str
    priority: Priority = Priority.NORMAL
    origin: str = "cli"
    actor: str = "local"
    base: str | None = None
    model: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    learning_rate_multiplier: float | None = None
    metadata: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One row of the queue. `progress` holds what each finished step left behind, by the step's name.

    `attempts` counts failures in a row without progress; `seconds` and `cost_usd` what it has used so far; `gpus` the
    indices of the GPUs that it holds now; `watch_until` how long a promoted version's rewards are watched.
    """

    id: str
    agent: str
    source: str
    state: JobState
    priority: Priority
    request: JobRequest
    detail: str
    progress: Mapping[str, Any]
    result: Mapping[str, Any] | None
    error: str | None
    error_code: str | None
    attempts: int
    interruptions: int
    cancelling: bool
    worker: str | None
    host: str | None
    gpus: tuple[int, ...]
    seconds: float
    cost_usd: float
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    watch_until: datetime | None

    @property
    def key(self) -> str:
        """What only one live job may have."""
        return live_key(self.agent, self.source)


def live_key(agent: str, source: str) -> str:
    """Agent and dataset, as the table keeps them unique among live jobs."""
    return f"{agent}\n{source}"


@dataclass(frozen=True, slots=True)
class JobEvent:
    """Something that happened to a job. `level` is info, warn or error; `data` are metrics, or empty."""

    id: int
    job: str
    at: datetime
    level: str
    message: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class WorkerView:
    """A worker as the table knows it."""

    id: str
    host: str
    pid: int
    endpoint: str | None
    started_at: datetime
    seen_at: datetime


@dataclass(frozen=True, slots=True)
class TriggerView:
    """What the triggers decided for an agent, and since when. `action` is start, dry_run or wait."""

    agent: str
    action: str
    reason: str
    detail: str
    job: str | None
    first_at: datetime
    last_at: datetime

"""What the pipeline needs of the others, as Protocols: cases, datasets, plans, trainers, judges, canaries.

`training.jobs.join` has the real ones; tests inject faults through the same seams.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Protocol

from training.jobs.gpus import Needs
from training.jobs.model import Job

Check = Callable[[], None]
"""called often by long steps; raises Interrupted when the step must end"""
Tell = Callable[[str], None]
"""says what is being done, for people"""


@dataclass(frozen=True, slots=True)
class Base:
    """A base model that adapters can be trained for. `source` is its folder, or a hub id where it lies elsewhere.

    `weights` and `template` are digests of what it is and of how it renders a conversation.
    """

    name: str
    source: str
    max_lora_rank: int
    weights: str
    template: str


@dataclass(frozen=True, slots=True)
class DatasetView:
    """A built dataset: rows by split, and the folder with its files."""

    name: str
    folder: Path
    train: int
    validation: int
    holdout: int

    @property
    def rows(self) -> int:
        """All of them."""
        return self.train + self.validation + self.holdout


@dataclass(frozen=True, slots=True)
class Trained:
    """What a trainer left: a PEFT folder, or a model's; `measures` is its result file."""

    folder: Path
    is_adapter: bool
    measures: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Contest:
    """Who is compared, by the names that the endpoint serves them under; no champion for an agent's first adapter."""

    agent: str
    candidate: str
    champion: str | None
    base: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the gate found; `report` is JSON."""

    passed: bool
    text: str
    report: Mapping[str, Any]


class Advance(Protocol):
    """How a canary, or a watch over a champion, stands."""

    @property
    def decision(self) -> Literal["continue", "promote", "reject"]:
        """What is to be done."""
        ...

    @property
    def text(self) -> str:
        """Why, for people."""
        ...


@dataclass(frozen=True, slots=True)
class Standing:
    """An adapter's rewarded answers: how many, and their mean."""

    count: int
    mean: float


class Cases(Protocol):
    """The CaseBank."""

    def agents(self) -> Sequence[str]:
        """Agents that have cases."""
        ...

    def eligible(self, agent: str, since: datetime | None = None) -> int:
        """Cases that can be learned from, written or rewarded after `since`."""
        ...

    def standing(self, agent: str, adapter: str, since: datetime) -> Standing:
        """What an adapter version's answers to the agent have been worth."""
        ...

    def take_in(self, file: Path, agent: str) -> str:
        """Import an uploaded file of conversations for `agent`; what came of it. Raises Hopeless."""
        ...


class Datasets(Protocol):
    """Datasets of an agent's cases."""

    def build(self, agent: str) -> DatasetView:
        """Build, or find, the dataset of the agent's cases as they are now. Raises Hopeless when they are too few."""
        ...

    def load(self, name: str) -> DatasetView:
        """A built one. Raises StepFailed when its files are not what they were."""
        ...


class Trainers(Protocol):
    """How training is configured, foreseen and run."""

    def needs(self, job: Job, base: Base) -> Needs:
        """Which devices the job asks for."""
        ...

    def configure(self, job: Job, base: Base, dataset: DatasetView, folder: Path) -> None:
        """Check that it can fit, and write `folder`/config.json. Raises Hopeless with the reason."""
        ...

    def train(self, job: Job, folder: Path, watch: Callable[[Mapping[str, Any]], None]) -> Trained:
        """Train in a process of its own; `watch` is told the trainer's status. Raises StepFailed."""
        ...


class Judge(Protocol):
    """The gate, on the serving engine."""

    def wait(self, model: str, check: Check, tell: Tell) -> None:
        """Return once the endpoint answers for `model`."""
        ...

    def judge(self, contest: Contest, dataset: DatasetView, folder: Path, check: Check) -> Verdict:
        """Compare them on the dataset's holdout; the report goes into `folder`. Raises StepFailed."""
        ...


class Canaries(Protocol):
    """What users' rewards say of a challenger beside its champion, and of a new champion after the one before."""

    def advance(self, agent: str, challenger: str, champion: str, began: datetime) -> Advance:
        """How a canary stands."""
        ...

    def regressed(self, agent: str, champion: str, before: str, promoted: datetime) -> Advance:
        """Whether a new champion does worse than the one before did: `reject` then, `continue` otherwise."""
        ...


@dataclass(frozen=True)
class Parts:
    """All of them, and the bases served here by public name."""

    cases: Cases
    datasets: Datasets
    trainers: Trainers
    judge: Judge
    canaries: Canaries
    bases: Callable[[], Mapping[str, Base]] = field(default=dict)
    preferred_base: Callable[[str], str | None] = field(default=lambda _agent: None)
    """base that an agent's preset names"""

"""Parts of a pipeline that a test spoils at will: everything that is not the queue, the registry or the disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.adapters_registry.build import write_adapter
from training.jobs.errors import StepFailed
from training.jobs.gpus import Needs
from training.jobs.model import Job
from training.jobs.parts import Base, Check, Contest, DatasetView, Parts, Standing, Tell, Trained, Verdict

NO_REWARDS = Standing(0, 0.0)
BASE = Base("tiny-base", "/models/tiny-base", 16, weights="w1", template="t1")


@dataclass(frozen=True)
class Advance:
    decision: Any
    text: str


@dataclass
class Scripted:
    """All parts in one, with what each answers and what was asked of them."""

    folder: Path
    passed: bool = True
    advance_: Advance = Advance("continue", "too few rewards")
    regressed_: Advance = Advance("continue", "no difference")
    eligible_: int = 0
    standing_: Standing = NO_REWARDS
    seed: int = 1
    base: Base = BASE
    fail: dict[str, Exception] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    contest: Contest | None = None
    while_training: Callable[[], None] = field(default=lambda: None)

    def parts(self) -> Parts:
        return Parts(self, self, self, self, self, bases=lambda: {self.base.name: self.base})

    def _ask(self, what: str) -> None:
        self.asked.append(what)
        if (error := self.fail.pop(what, None)) is not None:
            raise error

    # -- cases, datasets ---------------------------------------------------------------------------------------------

    def agents(self) -> Sequence[str]:
        return ["legal"]

    def eligible(self, agent: str, since: datetime | None = None) -> int:
        return self.eligible_

    def standing(self, agent: str, adapter: str, since: datetime) -> Standing:
        return self.standing_

    def take_in(self, file: Path, agent: str) -> str:
        self._ask("import")
        return f"imported {file.name}"

    def build(self, agent: str) -> DatasetView:
        self._ask("dataset")
        return DatasetView("ds-1", self.folder, 80, 10, 20)

    def load(self, name: str) -> DatasetView:
        self._ask("load")
        return DatasetView(name, self.folder, 80, 10, 20)

    # -- trainers ----------------------------------------------------------------------------------------------------

    def needs(self, job: Job, base: Base) -> Needs:
        return Needs()

    def configure(self, job: Job, base: Base, dataset: DatasetView, folder: Path) -> None:
        self._ask("configure")

    def train(self, job: Job, folder: Path, watch: Callable[[Mapping[str, Any]], None]) -> Trained:
        self._ask("train")
        for step in range(11):
            watch({"step": step, "total_steps": 10, "loss": 1.0 / (step + 1)})
            self.while_training()
        adapter = folder / f"adapter-{self.seed}"
        if not adapter.exists():
            write_adapter(adapter, self.seed)
        return Trained(adapter, True, {"steps": 10, "loss": 0.1, "tokens": 1234})

    # -- judge, canaries ---------------------------------------------------------------------------------------------

    def wait(self, model: str, check: Check, tell: Tell) -> None:
        self._ask("wait")

    def judge(self, contest: Contest, dataset: DatasetView, folder: Path, check: Check) -> Verdict:
        self._ask("judge")
        self.contest = contest
        report = {"passed": self.passed, "candidate": {"task": 0.9}, "champion": None, "base": {"task": 0.1}}
        return Verdict(self.passed, "passed: +80 %" if self.passed else "refused: no sure gain", report)

    def advance(self, agent: str, challenger: str, champion: str, began: datetime) -> Advance:
        return self.advance_

    def regressed(self, agent: str, champion: str, before: str, promoted: datetime) -> Advance:
        return self.regressed_


def broken() -> StepFailed:
    return StepFailed("the disk is full", "disk_full")

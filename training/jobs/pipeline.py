"""From a claimed job to a verdict, and from a canary to its end. Every step is remembered and done once.

    dataset -> configure -> train -> register -> gate -> promoted, refused, or canary -> promoted or refused

A step's outcome is kept in the job's row before the next begins, and each step finds what an attempt before it left
(the dataset by its name, the trainer's checkpoint, the version by its content), so that a job goes on where it was
when its worker died.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol

from adapters_registry import AdapterRegistry, AdapterVersion, Alias, RegistryError, State
from adapters_registry.errors import AdapterInvalid, LifecycleError, SourceError
from training.jobs import rows
from training.jobs.claims import Claims
from training.jobs.errors import Hopeless
from training.jobs.gpus import Needs
from training.jobs.model import FILE, Job, JobState
from training.jobs.names import adapter_name, choose_base
from training.jobs.parts import Base, Contest, DatasetView, Parts, Trained, Verdict

log = logging.getLogger(__name__)

ACTOR = "training"
TELL_S = 2.0


class Hold(Protocol):
    """A worker's hold on the job that it works on."""

    def check(self) -> None:
        """Raises Interrupted when work on the job must end."""
        ...


@dataclass(frozen=True)
class Rules:
    """What the settings say about verdicts: the longest watch over a new champion, in seconds."""

    watch_s: float = 86_400.0


class Pipeline:
    """Takes jobs through the steps. Thread-safe; `home` holds jobs, uploads and datasets."""

    def __init__(
        self, claims: Claims, registry: AdapterRegistry, parts: Parts, home: Path, rules: Rules | None = None
    ) -> None:
        self._claims = claims
        self._registry = registry
        self._parts = parts
        self._home = home
        self._rules = rules or Rules()

    def base_of(self, job: Job) -> Base:
        """The base that the job trains for. Raises Hopeless."""
        kept = job.progress.get("base", {}).get("name")
        wanted = kept or job.request.base
        preferred = self._parts.preferred_base(job.agent)
        return choose_base(wanted, job.agent, self._parts.bases(), self._registry.snapshot(), preferred)

    def needs(self, job: Job) -> Needs:
        """Which devices the job asks for. Raises Hopeless."""
        return self._parts.trainers.needs(job, self.base_of(job))

    def folder(self, job: Job) -> Path:
        """Where the job's files lie."""
        return self._home / "jobs" / job.id

    # -- up to the verdict -------------------------------------------------------------------------------------------

    def run(self, job: Job, hold: Hold) -> Job:
        """Take a claimed job to its end, or to its canary. Raises StepFailed, Interrupted."""
        self.folder(job).mkdir(parents=True, exist_ok=True)
        base = self.base_of(job)
        job = self._once(job, "base", {"name": base.name, "weights": base.weights, "template": base.template})
        dataset, job = self._dataset(job, hold)
        trained, job = self._train(job, base, dataset, hold)
        if not trained.is_adapter:
            return self._finish_model(job, trained)
        version, job = self._register(job, trained, base)
        verdict, job = self._judge(job, version, dataset, hold)
        return self._act_on(job, version, verdict)

    def _dataset(self, job: Job, hold: Hold) -> tuple[DatasetView, Job]:
        if kept := job.progress.get("dataset"):
            return self._parts.datasets.load(kept["name"]), job
        if job.source.startswith(FILE) and "import" not in job.progress:
            self._claims.tell(job.id, "importing the file")
            said = self._parts.cases.take_in(self._home / "files" / job.source, job.agent)
            job = self._claims.keep(job.id, "import", {"file": job.source}, said)
        hold.check()
        self._claims.tell(job.id, "building the dataset")
        at = rows.now()
        dataset = self._parts.datasets.build(job.agent)
        outcome = {
            "name": dataset.name,
            "train": dataset.train,
            "validation": dataset.validation,
            "holdout": dataset.holdout,
            "at": at.isoformat(),
        }
        counts = f"{dataset.train} train, {dataset.validation} validation, {dataset.holdout} held out"
        said = f"dataset {dataset.name}: {counts}"
        return dataset, self._claims.keep(job.id, "dataset", outcome, said)

    def _train(self, job: Job, base: Base, dataset: DatasetView, hold: Hold) -> tuple[Trained, Job]:
        folder = self.folder(job)
        if kept := job.progress.get("train"):
            return Trained(Path(kept["folder"]), kept["is_adapter"], kept["measures"]), job
        hold.check()
        self._parts.trainers.configure(job, base, dataset, folder)
        self._claims.tell(job.id, "starting the trainer")
        teller = Teller(self._claims, job, hold)
        trained = self._parts.trainers.train(job, folder, teller)
        outcome = {
            "folder": str(trained.folder),
            "is_adapter": trained.is_adapter,
            "measures": dict(trained.measures),
        }
        return trained, self._claims.keep(job.id, "train", outcome, f"trained: {_measures(trained.measures)}")

    def _register(self, job: Job, trained: Trained, base: Base) -> tuple[AdapterVersion, Job]:
        if kept := job.progress.get("version"):
            return self._version(kept["engine_name"]), job
        self._claims.move(job.id, JobState.GATING, "registering the candidate", free_devices=True)
        known = self._registry.list_versions(include_retired=True)
        name = adapter_name(job.agent, base.name, known, self._parts.bases())
        try:
            version = self._registry.register(
                name, trained.folder, agent=job.agent, base=base.name, alias="none", actor=ACTOR
            )
            if version.state is State.VALIDATED:
                version = self._registry.set_state(name, version.version, State.CANDIDATE, actor=ACTOR)
        except (AdapterInvalid, SourceError) as error:
            raise Hopeless(f"the trained adapter cannot be registered: {error.message}", error.code) from error
        job = self._claims.keep(
            job.id, "version", {"engine_name": version.engine_name}, f"{version.engine_name} is a candidate"
        )
        return version, job

    def _version(self, engine_name: str) -> AdapterVersion:
        try:
            return self._registry.resolve(engine_name)
        except RegistryError as error:
            raise Hopeless(f"{engine_name} has been taken out of service meanwhile", error.code) from error

    def _judge(self, job: Job, version: AdapterVersion, dataset: DatasetView, hold: Hold) -> tuple[Verdict, Job]:
        if kept := job.progress.get("gate"):
            return Verdict(kept["passed"], kept["text"], kept["report"]), job
        champion = self._champion(job.agent, version)
        if job.state is not JobState.GATING:
            job = self._claims.move(job.id, JobState.GATING, "waiting for the endpoint", free_devices=True)
        self._parts.judge.wait(version.engine_name, hold.check, lambda text: self._claims.tell(job.id, text))
        against = champion.engine_name if champion else version.base
        self._claims.tell(job.id, f"{version.engine_name} against {against}")
        verdict = self._parts.judge.judge(
            Contest(job.agent, version.engine_name, champion.engine_name if champion else None, version.base),
            dataset,
            self.folder(job),
            hold.check,
        )
        outcome = {
            "passed": verdict.passed,
            "text": verdict.text,
            "report": dict(verdict.report),
            "champion": champion.engine_name if champion else None,
        }
        return verdict, self._claims.keep(job.id, "gate", outcome, f"gate: {verdict.text}")

    # -- the verdict -------------------------------------------------------------------------------------------------

    def _act_on(self, job: Job, version: AdapterVersion, verdict: Verdict) -> Job:
        if not verdict.passed:
            self._drop(version)
            return self._claims.finish(job.id, self._result(job, version, promoted=False), f"refused: {verdict.text}")
        champion = self._champion(job.agent, version)
        if champion is None:
            return self._promote(job, version, None, "the agent's first")
        if version.state is State.CANDIDATE:
            self._registry.set_state(version.name, version.version, State.CANARY, actor=ACTOR)
        self._registry.promote(version.name, version.version, actor=ACTOR, alias=Alias.CHALLENGER)
        job = self._once(job, "canary", {"champion": champion.engine_name, "at": rows.now().isoformat()})
        self._claims.move(job.id, JobState.CANARY, f"canary beside {champion.engine_name}")
        self._claims.release(job.id)
        return job

    def _promote(self, job: Job, version: AdapterVersion, before: str | None, why: str) -> Job:
        self._registry.promote(version.name, version.version, actor=ACTOR)
        watch = rows.now() + timedelta(seconds=self._rules.watch_s) if before and self._rules.watch_s else None
        result = self._result(job, version, promoted=True) | {"before": before, "promoted_at": rows.now().isoformat()}
        message = f"{version.engine_name} is champion of {job.agent}: {why}"
        return self._claims.finish(job.id, result, message, watch_until=watch)

    def _champion(self, agent: str, version: AdapterVersion) -> AdapterVersion | None:
        champion = self._registry.snapshot().champion(agent)
        return champion if champion is not None and champion.engine_name != version.engine_name else None

    def _drop(self, version: AdapterVersion) -> None:
        """Retire a version that lost, unless somebody made it champion meanwhile."""
        champion = self._registry.snapshot().champion(version.agent)
        if champion is None or champion.engine_name != version.engine_name:
            self._registry.retire(version.name, version.version, actor=ACTOR)

    def _result(self, job: Job, version: AdapterVersion, *, promoted: bool) -> dict[str, Any]:
        gate = job.progress.get("gate", {})
        report = {**gate.get("report", {}), "passed": gate.get("passed", False)}
        return {"version": version.version, "adapter": version.engine_name, "gate": report, "promoted": promoted}

    def _finish_model(self, job: Job, trained: Trained) -> Job:
        result = {"version": None, "adapter": None, "gate": {"passed": False}, "promoted": False}
        where = f"the whole model is in {trained.folder}: serve it as an engine of its own"
        return self._claims.finish(job.id, result | {"model": str(trained.folder)}, where)

    # -- canary and watch --------------------------------------------------------------------------------------------

    def canary_step(self, job: Job) -> Job:
        """Look at a canary's rewards, and end it if they suffice. The job is held for this step only."""
        kept, name = job.progress["canary"], job.progress["version"]["engine_name"]
        snapshot = self._registry.snapshot()
        version, champion = snapshot.versions.get(name), snapshot.champion(job.agent)
        if version is None:
            return self._end_canary(job, None, "reject", f"{name} has been retired meanwhile")
        if champion is None or champion.engine_name == name:
            return self._end_canary(job, version, "promote", "no other champion is left")
        if job.cancelling:
            self._drop(version)
            return self._claims.cancelled(job.id, "cancelled; the canary is retired")
        began = datetime.fromisoformat(kept["at"])
        advance = self._parts.canaries.advance(job.agent, name, champion.engine_name, began)
        if advance.decision == "continue":
            self._claims.release(job.id, f"canary: {advance.text}")
            return job
        return self._end_canary(job, version, advance.decision, advance.text)

    def _end_canary(self, job: Job, version: AdapterVersion | None, decision: str, text: str) -> Job:
        if version is None:
            result = {"version": None, "gate": dict(job.progress["gate"]["report"]), "promoted": False}
            return self._claims.finish(job.id, result, f"canary ended: {text}")
        if decision == "promote":
            return self._promote(job, version, job.progress["canary"]["champion"], f"canary: {text}")
        self._drop(version)
        return self._claims.finish(job.id, self._result(job, version, promoted=False), f"canary refused: {text}")

    def watch_step(self, job: Job) -> None:
        """Look at the rewards of a champion that a job made, and roll it back if they fell."""
        result = job.result or {}
        name, before = result.get("adapter"), result.get("before")
        champion = self._registry.snapshot().champion(job.agent)
        if champion is None or champion.engine_name != name or not before:
            self._claims.watched(job.id, "watch ended: another version serves", changes={})
            return
        promoted = datetime.fromisoformat(result["promoted_at"])
        advance = self._parts.canaries.regressed(job.agent, name, before, promoted)
        if advance.decision == "reject":
            self._roll_back(job, champion, advance.text)
        elif job.watch_until is not None and job.watch_until <= rows.now():
            self._claims.watched(job.id, f"watch ended: {advance.text}", changes={})
        else:
            self._claims.release(job.id)

    def _roll_back(self, job: Job, version: AdapterVersion, text: str) -> None:
        try:
            now = self._registry.rollback(job.agent, actor=ACTOR)
        except LifecycleError as error:
            self._claims.watched(job.id, f"regression, and no way back: {error.message}", level="error", changes={})
            return
        self._registry.retire(version.name, version.version, actor=ACTOR)
        message = f"regression ({text}): {now.engine_name} serves again"
        self._claims.watched(job.id, message, level="warn", changes={"rolled_back": True})

    def _once(self, job: Job, step: str, outcome: Mapping[str, Any]) -> Job:
        return job if step in job.progress else self._claims.keep(job.id, step, outcome)


class Teller:
    """Passes a trainer's status on: into the row every few seconds, as an event at each tenth; the hold may end it."""

    def __init__(self, claims: Claims, job: Job, hold: Hold) -> None:
        self._claims = claims
        self._job = job
        self._hold = hold
        self._told = -1
        self._next = 0.0

    def __call__(self, status: Mapping[str, Any]) -> None:
        """See `training.jobs.trainer.Watch`."""
        self._hold.check()
        step, total = status.get("step"), status.get("total_steps")
        if not isinstance(step, int) or not isinstance(total, int) or not total:
            return
        loss = status.get("loss")
        shown = f", loss {loss:.3f}" if isinstance(loss, float) else ""
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + TELL_S
            self._claims.tell(self._job.id, f"training, step {step} of {total}{shown}")
        tenth = 10 * step // total
        if tenth != self._told:
            self._told = tenth
            wanted = ("step", "total_steps", "epoch", "loss", "learning_rate")
            data = {name: status[name] for name in wanted if status.get(name) is not None}
            self._claims.store.record(self._job.id, f"step {step} of {total}{shown}", data=data)


def _measures(measures: Mapping[str, Any]) -> str:
    parts = []
    for name, label in (("steps", "steps"), ("loss", "loss"), ("validation_loss", "validation loss")):
        value = measures.get(name)
        if isinstance(value, (int, float)):
            parts.append(f"{label} {value:.4g}" if isinstance(value, float) else f"{value} {label}")
    return ", ".join(parts) or "done"

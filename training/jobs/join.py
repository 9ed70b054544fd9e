"""The real parts behind the pipeline's Protocols: CaseBank, datasets, planner, trainer, gate, canaries."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from adapters_registry.errors import RegistryError
from adapters_registry.model import AdapterVersion
from configs.training import TrainingPreset
from training.casebank import CaseBank
from training.dataset import Dataset, DatasetConfig, build_dataset, load_dataset, read_rows
from training.gate import EndpointClient, GateError, Judge
from training.gate.rewards import CaseRewards
from training.gate.template import FILE as TEMPLATE
from training.jobs.errors import Hopeless, StepFailed
from training.jobs.gpus import Needs
from training.jobs.model import Job
from training.jobs.parts import Base, Check, Contest, DatasetView, Standing, Tell, Trained, Verdict
from training.jobs.trainer import TrainerCommand, Watch, run_trainer
from training.planner import Card, DoesNotFit, PlannerError, Recipe, find_card, load_shape
from training.planner import check as check_plan
from training.trainer.config import TrainingConfig
from training.trainer.errors import TrainingRefused
from training.trainer.resolve import DataFacts

UPLOAD_FORMAT = "messages"
RATED = 20_000
"""rewarded answers of a champion that its win rate is taken from; the latest ones"""
WAIT_S = 0.5
ASK_S = 10.0
GATE_JSON, GATE_HTML = "gate.json", "gate.html"


class BankCases:
    """`Cases` of a CaseBank."""

    def __init__(self, bank: CaseBank, reward_threshold: float) -> None:
        self._bank = bank
        self._rewards = CaseRewards(bank.database)
        self._reward_threshold = reward_threshold

    def agents(self) -> Sequence[str]:
        """See `Cases`."""
        return self._bank.agents()

    def eligible(self, agent: str, since: datetime | None = None) -> int:
        """See `Cases`."""
        return self._bank.count_eligible(agent, self._reward_threshold, since)

    def standing(self, agent: str, adapter: str, since: datetime) -> Standing:
        """See `Cases`."""
        found = [each.reward for each in self._rewards.rewards(agent, adapter, since, limit=RATED)]
        return Standing(len(found), sum(found) / len(found) if found else 0.0)

    def take_in(self, file: Path, agent: str) -> str:
        """See `Cases`."""
        try:
            report = self._bank.import_file(file, UPLOAD_FORMAT, agent)
        except RegistryError as error:
            raise Hopeless(f"the file cannot be imported: {error.message}", error.code) from error
        if not report.added and not report.duplicates:
            first = f"; line {report.problems[0].line}: {report.problems[0].reason}" if report.problems else ""
            raise Hopeless(f"the file holds no conversation to learn from{first}", "invalid_file")
        return f"imported {report.added} cases ({report.duplicates} known already, {report.bad} bad rows left out)"


class BankDatasets:
    """`Datasets` under `home`, of one CaseBank; `config_of` tells how those of an agent are chosen."""

    def __init__(self, bank: CaseBank, config_of: Callable[[str], DatasetConfig], home: Path) -> None:
        self._bank = bank
        self._config_of = config_of
        self._home = home

    def build(self, agent: str) -> DatasetView:
        """See `Datasets`."""
        try:
            return _view(build_dataset(self._bank.database, self._bank, agent, self._config_of(agent), self._home))
        except RegistryError as error:
            if error.code in {"dataset_empty", "dataset_leakage"}:
                raise Hopeless(error.message, error.code) from error
            raise

    def load(self, name: str) -> DatasetView:
        """See `Datasets`."""
        return _view(load_dataset(self._home, name))


def _view(dataset: Dataset) -> DatasetView:
    rows = dataset.rows
    return DatasetView(dataset.name, dataset.folder, rows["train"], rows["validation"], rows["holdout"])


def processes_of(job: Job) -> int:
    """How many processes train it."""
    return int(dict(job.request.overrides.get("launcher", {})).get("processes", 1))


def spare_threads(processes: int) -> int:
    """Threads for each of `processes` trainers: of the cores that this process may use, all but one, shared out."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, (cores - 1) // processes)


@dataclass(frozen=True)
class ProcessTrainers:
    """`Trainers` in processes of their own.

    `preset_of` gives an agent's preset, `adapter_of` the version that a name means; `threads` is what trainers without
    a GPU use, by default all cores but one, shared by the `jobs` that may run at once: a thread that waits for its turn
    beside what serves makes all wait.
    """

    preset_of: Callable[[str], TrainingPreset]
    adapter_of: Callable[[str], AdapterVersion]
    has_gpus: Callable[[], bool]
    threads: int | None = None
    jobs: int = 1
    command: TrainerCommand = field(default_factory=TrainerCommand)

    def needs(self, job: Job, base: Base) -> Needs:
        """See `Trainers`; what the planner cannot foresee gets cards of its own."""
        gpus = processes_of(job)
        if not self.has_gpus():
            return Needs()
        try:
            peak = self._peak(job, base)
        except PlannerError:
            return Needs(gpus)
        return Needs(gpus, peak)

    def configure(self, job: Job, base: Base, dataset: DatasetView, folder: Path) -> None:
        """See `Trainers`."""
        given = dict(job.request.overrides)
        rows = given.pop("batch_size", None)
        if rows is not None:
            given["batch_tokens"] = _batch_tokens(dataset, int(rows))
        if (start := given.get("continue_from")) is not None:
            given["continue_from"] = self._folder_of(str(start), base)
        if job.request.learning_rate_multiplier is not None:
            given["learning_rate_multiplier"] = job.request.learning_rate_multiplier
        fixed = {
            "base": base.source,
            "base_name": base.name,
            "dataset": dataset.folder,
            "output": folder,
            "max_rank": base.max_lora_rank,
            "threads": self.threads or spare_threads(self.jobs * processes_of(job)),
            "device": "cuda" if job.gpus else "cpu",
        }
        try:
            config = TrainingConfig.from_preset(self.preset_of(job.agent), **{**given, **fixed})
            self._check(config, base, on_gpu=bool(job.gpus))
        except (TrainingRefused, DoesNotFit) as error:
            raise Hopeless(str(error), "training_refused") from error
        config.save()

    def train(self, job: Job, folder: Path, watch: Watch) -> Trained:
        """See `Trainers`."""
        result = run_trainer(folder, job.gpus, watch, self.command)
        place = result.get("adapter") or result["model"]
        return Trained(Path(place), "adapter" in result, result)

    def _folder_of(self, adapter: str, base: Base) -> Path:
        """Of the adapter that training starts from. Raises Hopeless."""
        try:
            version = self.adapter_of(adapter)
        except RegistryError as error:
            raise Hopeless(f"cannot continue from {adapter}: {error.message}", "training_refused") from error
        if version.base != base.name:
            made_for = f"it is made for the base {version.base}, and this job trains on {base.name}"
            raise Hopeless(f"cannot continue from {adapter}: {made_for}", "training_refused")
        return version.path

    def _check(self, config: TrainingConfig, base: Base, *, on_gpu: bool) -> None:
        """Refuse what cannot fit the machine. On a GPU the claim has seen to the room."""
        if on_gpu:
            return
        try:
            shape = load_shape(base.source)
            rank = config.rank or min(16, config.max_rank)
            check_plan(
                shape, Recipe(method=config.method, rank=rank, batch=1, length=_length(config)), find_card("cpu")
            )
        except DoesNotFit:
            raise
        except PlannerError:
            return  # a model of a kind that the planner does not know may still fit

    def _peak(self, job: Job, base: Base) -> int:
        """Bytes on each card, with one row at a time: what the trainer's fallbacks go down to."""
        preset = self.preset_of(job.agent)
        given = job.request.overrides
        recipe = Recipe(
            method=given.get("method", preset.method),
            rank=int(given.get("rank") or preset.rank or min(16, base.max_lora_rank)),
            batch=1,
            length=int(given.get("max_length") or preset.max_length),
        )
        unbounded = Card.of_memory(1 << 20)
        return check_plan(load_shape(base.source), recipe, unbounded).memory.peak.total


def _length(config: TrainingConfig) -> int:
    return config.max_length or 2048


def _batch_tokens(dataset: DatasetView, rows: int) -> int:
    """Tokens of a step of so many rows."""
    rows_read = read_rows(dataset.folder / "train.jsonl")
    lines = ({"messages": row.messages, "completion": row.completion} for row in rows_read)
    return max(16, math.ceil(rows * DataFacts.estimate(lines).mean_tokens))


class EndpointJudge:
    """`Judge` on the endpoint at `url`, with the key that it may need; `suites_of` gives an agent's benchmark files."""

    def __init__(
        self, url: str, key: str | None, *, general_loss: float, suites_of: Callable[[str], Sequence[Path]]
    ) -> None:
        self._url = url.rstrip("/")
        self._key = key
        self._general_loss = general_loss
        self._suites_of = suites_of

    def wait(self, model: str, check: Check, tell: Tell) -> None:
        """See `Judge`: until the endpoint is ready and lists the model. No failure ends the wait; `check` does."""
        told = ""
        while (missing := self._missing(model)) is not None:
            if missing != told:
                tell(f"waiting for the endpoint: {missing}")
                told = missing
            check()
            time.sleep(WAIT_S)

    def _missing(self, model: str) -> str | None:
        import httpx

        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            with httpx.Client(base_url=self._url, headers=headers, timeout=ASK_S, trust_env=False) as http:
                ready = http.get("/ready")
                listed = http.get(f"/v1/models/{model}")
        except httpx.HTTPError:
            return f"nothing answers at {self._url}"
        if ready.status_code != httpx.codes.OK:
            return "it is not ready"
        if listed.status_code != httpx.codes.OK:
            return f"it answers {listed.status_code} for {model}"
        return None

    def judge(self, contest: Contest, dataset: DatasetView, folder: Path, check: Check) -> Verdict:
        """See `Judge`."""

        def progress(_model: str, _done: int, _total: int) -> None:
            check()

        client = EndpointClient(self._url, self._key)
        judge = Judge(client, general_loss=self._general_loss, progress=progress)
        template = folder if (folder / TEMPLATE).is_file() else None
        try:
            report = judge.gate(
                candidate=contest.candidate,
                champion=contest.champion,
                base=contest.base,
                dataset=dataset,
                suites=self._suites_of(contest.agent),
                template=template,
            )
        except GateError as error:
            raise StepFailed(f"the gate reached no verdict: {error.message}", "gate_failed") from error
        report.write_json(folder / GATE_JSON)
        report.write_html(folder / GATE_HTML)
        return Verdict(report.passed, report.verdict, report.summary())

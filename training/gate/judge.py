"""The judge: a candidate against champion and base, on the frozen holdout, through the endpoint that serves them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from training.gate.endpoint import Connection, EndpointClient
from training.gate.evaluate import Evaluation, Exam, Progress, add_likelihoods, evaluate
from training.gate.report import BASE, CANDIDATE, CHAMPION, GateReport
from training.gate.rows import Row, is_classification, known_labels, read_general, read_holdout, read_suite
from training.gate.template import check_template, read_template
from training.gate.verdict import ANSWERABLE, MIN_ROWS, Guard, decide, measure_general, measure_suite, too_small

MAX_ROWS = 1000
"""rows of the holdout that are asked; more are sampled, the same ones every time"""
GENERAL_ROWS = 100


class DatasetFolder(Protocol):
    """What is needed of a dataset."""

    @property
    def name(self) -> str:
        """Its name, from the hash of its content."""
        ...

    @property
    def folder(self) -> Path:
        """Where `holdout.jsonl` and `train.jsonl` lie."""
        ...


class Judge:
    """Judges candidates that `endpoint` already serves by name and version.

    At most `max_rows` of the holdout and `general_rows` of the general set are asked, drawn by `seed`; a candidate may
    lose `general_loss` (0 to 1) there. `progress` is told model, rows done and rows in all. Errors are GateError.
    """

    def __init__(
        self,
        endpoint: EndpointClient,
        *,
        general_loss: float = 0.01,
        max_rows: int = MAX_ROWS,
        general_rows: int = GENERAL_ROWS,
        seed: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._general_loss = general_loss
        self._max_rows = max_rows
        self._general_rows = general_rows
        self._seed = seed
        self._progress = progress

    def gate(
        self,
        *,
        candidate: str,
        champion: str | None,
        base: str,
        dataset: DatasetFolder,
        general: Path | None = None,
        suites: Sequence[Path] = (),
        template: Path | None = None,
    ) -> GateReport:
        """Judge `candidate` (`name@version`) against `champion`, or against `base` (a public name) without one.

        `general` is another general set than the package's, `template` the folder in which the trainer recorded how it
        renders. Not for callers that run an event loop.
        """
        return asyncio.run(
            self.agate(
                candidate=candidate,
                champion=champion,
                base=base,
                dataset=dataset,
                general=general,
                suites=suites,
                template=template,
            )
        )

    async def agate(
        self,
        *,
        candidate: str,
        champion: str | None,
        base: str,
        dataset: DatasetFolder,
        general: Path | None = None,
        suites: Sequence[Path] = (),
        template: Path | None = None,
    ) -> GateReport:
        """`gate` for callers that run an event loop."""
        began = time.monotonic()
        models = {CANDIDATE: candidate} | ({CHAMPION: champion} if champion else {}) | {BASE: base}
        rows = self._sample(read_holdout(dataset.folder), self._max_rows)
        if len(rows) < MIN_ROWS:
            return GateReport(dataset.name, models, too_small(len(rows)), rows)
        labels = known_labels(dataset.folder, rows) if is_classification(rows) else frozenset()
        record = read_template(template) if template else None
        reference = models.get(CHAMPION, base)
        async with self._endpoint.connected() as endpoint:
            rendered = await check_template(endpoint, candidate, record) if record else None
            done = await self._evaluate(endpoint, models, Exam(rows, labels, seed=self._seed))
            guards = [await self._guard_general(endpoint, candidate, reference, general)]
            guards += [await self._guard_suite(endpoint, candidate, reference, suite) for suite in suites]
        outcome = decide(done[CANDIDATE], done.get(CHAMPION, done[BASE]), guards, rendered, seed=self._seed)
        return GateReport(dataset.name, models, outcome, rows, done, rendered, time.monotonic() - began)

    async def _evaluate(self, endpoint: Connection, models: Mapping[str, str], exam: Exam) -> dict[str, Evaluation]:
        return {role: await evaluate(endpoint, model, exam, self._progress) for role, model in models.items()}

    async def _guard_general(self, endpoint: Connection, candidate: str, reference: str, general: Path | None) -> Guard:
        rows = self._sample(read_general(general), self._general_rows)
        exam = Exam(rows, likelihood_rows=0, seed=self._seed)
        one, other = [await evaluate(endpoint, model, exam, self._progress) for model in (candidate, reference)]
        if other.scores.task < ANSWERABLE:
            one, other = [await add_likelihoods(endpoint, each, Exam(rows, seed=self._seed)) for each in (one, other)]
        return measure_general(one, other, self._general_loss)

    async def _guard_suite(self, endpoint: Connection, candidate: str, reference: str, suite: Path) -> Guard:
        exam = Exam(tuple(read_suite(suite)), likelihood_rows=0, seed=self._seed)
        one, other = [await evaluate(endpoint, model, exam, self._progress) for model in (candidate, reference)]
        return measure_suite(suite.stem, one, other, self._general_loss)

    def _sample(self, rows: Sequence[Row], count: int) -> tuple[Row, ...]:
        if len(rows) <= count:
            return tuple(rows)
        chosen = sorted(random.Random(self._seed).sample(range(len(rows)), count))  # noqa: S311 - a sample, no secret
        return tuple(rows[index] for index in chosen)

"""One model on many rows through the endpoint: greedy answers, and the perplexity of the right ones."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from training.gate.endpoint import Connection, Likelihood, Reply
from training.gate.errors import EndpointFailed
from training.gate.metrics import exact_match, format_valid, macro_f1, said_by, task_score, token_f1
from training.gate.rows import Row, is_classification

MAX_TOKENS = 1024
"""longest answer that is waited for"""
LIKELIHOOD_ROWS = 64
"""rows whose right answer's likelihood is asked for; each costs three times what a short answer does"""

Result = TypeVar("Result")
Progress = Callable[[str, int, int], None]
"""told the model, the rows done and the rows in all"""


@dataclass(frozen=True, slots=True)
class Judged:
    """One row's answer. `score` is the task's metric; a row that the endpoint refused scores 0 and tells the error."""

    said: str
    score: float
    exact: bool
    f1: float
    format_ok: bool
    prompt_ids: tuple[int, ...] = ()
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Scores:
    """One model's figures over all rows: shares and means, 0 to 1.

    `task` is the mean of the task's own metric; `perplexity` that of the right answers with the end of their turn, over
    `likelihood_rows` rows and None where the engine cannot tell; `macro_f1` is None where the task has no labels.
    """

    rows: int
    task: float
    exact_match: float
    f1: float
    macro_f1: float | None
    perplexity: float | None
    likelihood_rows: int
    format_ok: float
    errors: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {name: _rounded(getattr(self, name)) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What `model` (a base's public name or `name@version`) did on the rows, in their order."""

    model: str
    scores: Scores
    judged: tuple[Judged, ...]
    nll: tuple[float | None, ...] = field(default=())
    """mean negative log likelihood a token of the right answer, in nats; None for rows that were not asked"""


@dataclass(frozen=True, slots=True)
class Exam:
    """Rows and how they are judged. `labels` are the valid answers of a classification, empty otherwise."""

    rows: tuple[Row, ...]
    labels: frozenset[str] = frozenset()
    likelihood_rows: int = LIKELIHOOD_ROWS
    seed: int = 0

    @property
    def max_tokens(self) -> int:
        """Longest answer waited for. No text has more tokens than bytes: no right answer below the cap is cut off."""
        longest = max((len(row.target.encode()) for row in self.rows), default=0)
        unknown = any(not row.target for row in self.rows)
        return MAX_TOKENS if unknown else min(longest + 8, MAX_TOKENS)

    def sampled(self) -> list[int]:
        """Rows whose likelihood is asked for: the same for every model."""
        with_target = [index for index, row in enumerate(self.rows) if row.target]
        count = min(self.likelihood_rows, len(with_target))
        return sorted(random.Random(self.seed).sample(with_target, count))  # noqa: S311 - a sample, no secret


async def evaluate(endpoint: Connection, model: str, exam: Exam, progress: Progress | None = None) -> Evaluation:
    """Ask `model` everything. Raises EndpointFailed where no row could be answered at all."""
    done = 0

    async def judged(row: Row) -> Judged:
        nonlocal done
        result = await _judge_row(endpoint, model, row, exam)
        done += 1
        if progress is not None:
            progress(model, done, len(exam.rows))
        return result

    results = await _all(judged(row) for row in exam.rows)
    if all(result.error for result in results):
        raise EndpointFailed(results[0].error or "nothing was answered")
    nll = await likelihoods(endpoint, model, exam, results)
    return Evaluation(model, _scores(exam, results, nll), tuple(results), tuple(nll))


async def add_likelihoods(endpoint: Connection, evaluation: Evaluation, exam: Exam) -> Evaluation:
    """The same evaluation, with the likelihoods of `exam.likelihood_rows` rows."""
    nll = await likelihoods(endpoint, evaluation.model, exam, evaluation.judged)
    return replace(evaluation, scores=_scores(exam, evaluation.judged, nll), nll=tuple(nll))


async def _judge_row(endpoint: Connection, model: str, row: Row, exam: Exam) -> Judged:
    try:
        reply = await endpoint.answer(model, row.messages, exam.max_tokens, row.tools)
    except EndpointFailed as error:
        if error.status != 400:  # one row may be too long for the engine; an endpoint that is gone is no verdict
            raise
        return Judged("", 0.0, False, 0.0, False, error=error.message)
    return judge_reply(row, reply, exam.labels)


def judge_reply(row: Row, reply: Reply, labels: frozenset[str]) -> Judged:
    """Score one answer."""
    said = said_by(reply)
    return Judged(
        said=said,
        score=task_score(row, said, classification=bool(labels)),
        exact=exact_match(said, row.target) if row.target else False,
        f1=token_f1(said, row.target) if row.target else 0.0,
        format_ok=format_valid(row, reply, labels),
        prompt_ids=reply.prompt_ids,
    )


async def likelihoods(endpoint: Connection, model: str, exam: Exam, judged: Sequence[Judged]) -> list[float | None]:
    """Mean negative log likelihood a token of each sampled row's target, the end of its turn included; else None."""
    values: list[float | None] = [None] * len(exam.rows)
    sampled = [index for index in exam.sampled() if judged[index].prompt_ids]
    if not sampled:
        return values
    trailing = await _trailing(endpoint, model, exam.rows[sampled[0]])

    async def ask(index: int) -> None:
        told = await endpoint.likelihood(model, answered(exam.rows[index]), exam.rows[index].tools)
        values[index] = answer_nll(told, judged[index].prompt_ids, trailing)

    try:
        await _all(ask(index) for index in sampled)
    except EndpointFailed as error:
        if error.status == 0:
            raise
    return values


async def _all(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All at once, in their order; the first failure ends the others before it is raised."""
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def answered(row: Row) -> list[Any]:
    """The row's messages with its right answer."""
    return [*row.messages, {"role": "assistant", "content": row.target}]


def answer_nll(told: Likelihood, prompt_ids: Sequence[int], trailing: int) -> float | None:
    """Mean over the answer's tokens, in nats; None where the template renders an answered prompt differently.

    `trailing` counts the tokens that the template puts after the end of the turn, which no model has to say.
    """
    start, end = len(prompt_ids), len(told.ids) - trailing
    if told.ids[:start] != tuple(prompt_ids) or end <= start:
        return None
    return -sum(value or 0.0 for value in told.logprobs[start:end]) / (end - start)


async def _trailing(endpoint: Connection, model: str, row: Row) -> int:
    """How many tokens the template puts after an answer's end of turn: all after the answer but one."""
    closed = await endpoint.likelihood(model, answered(row), row.tools)
    opened = await endpoint.likelihood(model, answered(row), row.tools, closed=False)
    return max(0, len(closed.ids) - len(opened.ids) - 1)


def _scores(exam: Exam, judged: Sequence[Judged], nll: Sequence[float | None]) -> Scores:
    known = [value for value in nll if value is not None]
    targets = [row.target for row in exam.rows]
    labelled = bool(exam.labels) or is_classification(exam.rows)
    return Scores(
        rows=len(judged),
        task=_mean([each.score for each in judged]),
        exact_match=_mean([each.exact for each in judged]),
        f1=_mean([each.f1 for each in judged]),
        macro_f1=macro_f1([each.said for each in judged], targets) if labelled else None,
        perplexity=math.exp(min(_mean(known), 700.0)) if known else None,
        likelihood_rows=len(known),
        format_ok=_mean([each.format_ok for each in judged]),
        errors=sum(each.error is not None for each in judged),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _rounded(value: float | None) -> float | None:
    return round(value, 6) if isinstance(value, float) else value

"""What an export costs: the exported model beside the adapter on its unmerged base, on the same held-out cases.

Three losses, and the largest counts: of right greedy answers (where answers are labels), of perplexity (by how much it
rises), and of texts that the exported tokenizer splits alike.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from training.export.cases import CaseSet
from training.export.errors import ExportError

LIMIT = 0.05
"""largest loss that an export may have"""


@dataclass(frozen=True)
class Measured:
    """What one model does with the cases; `nll` is the mean per token of the answers, end of turn included.

    `answers` are the first lines of its greedy answers, None where none were asked for; `prompts` the token ids of each
    conversation.
    """

    nll: float
    answers: tuple[str, ...] | None
    prompts: tuple[tuple[int, ...], ...]


class Model(Protocol):
    """A model that can be measured; `way` tells how it is run. It holds memory only while it is measured."""

    @property
    def way(self) -> str:
        """One phrase for the report."""

    def measure(self, cases: CaseSet, *, answer: bool) -> Measured:
        """Score the cases, and with `answer` answer them greedily."""


@dataclass(frozen=True)
class LossReport:
    """The outcome. Shares are 0 to 1; accuracies None where the answers are no labels."""

    way: str
    reference_way: str
    cases: int
    source: str
    reference_nll: float
    exported_nll: float
    reference_accuracy: float | None
    exported_accuracy: float | None
    same_answers: float | None
    accuracy_lost: float
    perplexity_lost: float
    tokens_lost: float
    limit: float

    @property
    def lost(self) -> float:
        """The largest loss."""
        return max(self.accuracy_lost, self.perplexity_lost, self.tokens_lost)

    @property
    def passed(self) -> bool:
        """Whether the export may stand. A loss that is not a number does not pass."""
        return self.lost <= self.limit and math.isfinite(self.exported_nll)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"lost": self.lost, "passed": self.passed}


def check_loss(reference: Model, exported: Model, cases: CaseSet, *, limit: float = LIMIT) -> LossReport:
    """Measure one model after the other. Raises ExportError without cases."""
    if not cases.cases:
        raise ExportError("there are no cases to check the export on")
    before = reference.measure(cases, answer=cases.labelled)
    after = exported.measure(cases, answer=cases.labelled)
    was, now = accuracy(before, cases), accuracy(after, cases)
    return LossReport(
        way=exported.way,
        reference_way=reference.way,
        cases=len(cases.cases),
        source=cases.source,
        reference_nll=before.nll,
        exported_nll=after.nll,
        reference_accuracy=was,
        exported_accuracy=now,
        same_answers=_alike(before.answers, after.answers) if before.answers and after.answers else None,
        accuracy_lost=max(0.0, (was - now) / was) if was and now is not None else 0.0,
        perplexity_lost=_rise(before.nll, after.nll),
        tokens_lost=1 - _alike(before.prompts, after.prompts),
        limit=limit,
    )


def accuracy(measured: Measured, cases: CaseSet) -> float | None:
    """Share of answers that are the label."""
    if measured.answers is None:
        return None
    return _alike(measured.answers, tuple(case.answer.strip() for case in cases.cases))


def first_line(answer: str) -> str:
    """What is compared with a label."""
    return answer.strip().split("\n", 1)[0].strip()


def _rise(before: float, after: float) -> float:
    """By which share perplexity rises; all of it for what is not finite."""
    difference = after - before
    return max(0.0, math.expm1(min(difference, 50.0))) if math.isfinite(difference) else math.inf


def _alike(left: tuple[Any, ...], right: tuple[Any, ...]) -> float:
    return sum(bool(one == other) for one, other in zip(left, right, strict=True)) / len(left)

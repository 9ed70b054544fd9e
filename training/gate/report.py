"""What the gate hands out: the verdict with everything it rests on, as JSON and as a page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from training.gate.evaluate import Evaluation, Scores
from training.gate.rows import GENERAL, Row
from training.gate.template import TemplateCheck
from training.gate.verdict import Guard, Verdict

CANDIDATE, CHAMPION, BASE = "candidate", "champion", "base"
ROLES = (CANDIDATE, CHAMPION, BASE)
MAX_TEXT = 2000
"""characters of a question or an answer in the JSON"""


@dataclass(frozen=True, slots=True)
class GateReport:
    """`models` are the names by role; `evaluations` is empty where the holdout was too small to judge."""

    dataset: str
    models: Mapping[str, str]
    outcome: Verdict
    rows: tuple[Row, ...] = ()
    evaluations: Mapping[str, Evaluation] = field(default_factory=dict)
    template: TemplateCheck | None = None
    seconds: float = 0.0
    at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def passed(self) -> bool:
        """Whether the candidate may serve."""
        return self.outcome.passed

    @property
    def verdict(self) -> str:
        """The verdict and its reasons in one line."""
        return self.outcome.text

    @property
    def candidate(self) -> Scores | None:
        """The candidate's figures."""
        return self._scores(CANDIDATE)

    @property
    def champion(self) -> Scores | None:
        """The champion's, None where the agent has none."""
        return self._scores(CHAMPION)

    @property
    def base(self) -> Scores | None:
        """The base model's."""
        return self._scores(BASE)

    @property
    def lower_bound(self) -> float | None:
        """Lower bound of the gain in the task's score, 0 to 1."""
        return self.outcome.bootstrap.lower if self.outcome.bootstrap else None

    @property
    def general(self) -> Guard | None:
        """The general set, None where it was not asked."""
        return next((guard for guard in self.outcome.guards if guard.name == GENERAL), None)

    def summary(self) -> dict[str, Any]:
        """As JSON without the rows."""
        scored: dict[str, Any] = {
            role: {"model": self.models[role]} | (scores.to_dict() if (scores := self._scores(role)) else {})
            if role in self.models
            else None
            for role in ROLES
        }
        bootstrap = self.outcome.bootstrap
        return {
            "passed": self.passed,
            "verdict": self.verdict,
            "dataset": self.dataset,
            **scored,
            "bootstrap": bootstrap.to_dict() if bootstrap else None,
            "general": self.general.to_dict() if self.general else None,
            "suites": [guard.to_dict() for guard in self.outcome.guards if guard.name != GENERAL],
            "template": self.template.to_dict() if self.template else None,
            "seconds": round(self.seconds, 2),
            "at": self.at.isoformat(),
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with every row's answers."""
        return self.summary() | {"results": [self._row(index) for index in range(len(self.rows))]}

    def write_json(self, path: Path) -> Path:
        """Write `to_dict`."""
        path.write_text(json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return path

    def write_html(self, path: Path) -> Path:
        """Write one page that needs no other file."""
        from training.gate.page import render

        path.write_text(render(self), encoding="utf-8")
        return path

    def _scores(self, role: str) -> Scores | None:
        evaluation = self.evaluations.get(role)
        return evaluation.scores if evaluation else None

    def _row(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        answers = {
            role: {"said": each.said[:MAX_TEXT], "score": round(each.score, 4), "format_ok": each.format_ok}
            | ({"error": each.error} if each.error else {})
            for role, evaluation in self.evaluations.items()
            for each in (evaluation.judged[index],)
        }
        return {"id": row.id, "question": row.question[:MAX_TEXT], "target": row.target[:MAX_TEXT], "answers": answers}

"""What gates have measured, as evidence: each answer of candidate, champion and base to a question of the holdout.

The questions are cases, and each answer counts in the scope of its case's owner: a gate over several tenants' cases
tells each of them what its own say.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import load_only

from adapters_registry.database import Database
from configs.routing import Learning
from training.casebank.tables import CaseRow
from training.jobs.join import GATE_JSON
from training.jobs.tables import JobRow
from training.routing.counting import Counter
from training.routing.outcomes import ASKED, Outcome, asked_of
from training.routing.scopes import scope_of
from training.routing.tables import OutcomeRow

log = logging.getLogger(__name__)

PAGE = 500
LATEST = 200
"""jobs that are looked at"""
ROLES = ("candidate", "champion", "base")


class Gates:
    """Reads the reports of finished gates under `home`, each once."""

    def __init__(self, database: Database, home: Path, learning: Learning) -> None:
        self._database = database
        self._home = home
        self._learning = learning
        self._read: set[str] = set()

    def count(self, counter: Counter) -> int:
        """Count the gates that have not been; how many outcomes they held. Raises DatabaseError."""
        if self._learning == "off":
            return 0
        counted = 0
        for job, agent in self._new_jobs():
            report = _read(self._home / "jobs" / job / GATE_JSON)
            results = list(report.get("results", ()))
            pages = (results[start : start + PAGE] for start in range(0, len(results), PAGE))
            # all at once: one outcome tells that the job has been counted
            counted += counter.add([each for page in pages for each in self._outcomes(job, agent, report, page)])
            self._read.add(job)
        return counted

    def _new_jobs(self) -> list[tuple[str, str]]:
        with self._database.read() as session:
            jobs = session.execute(
                sa.select(JobRow.id, JobRow.agent, JobRow.progress).order_by(JobRow.created_at.desc()).limit(LATEST)
            ).all()
            counted = set(session.scalars(sa.select(OutcomeRow.gate).where(OutcomeRow.gate.is_not(None)).distinct()))
        return [(id_, agent) for id_, agent, done in jobs if "gate" in done and id_ not in counted | self._read]

    def _outcomes(
        self, job: str, agent: str, report: Mapping[str, Any], results: Sequence[Mapping[str, Any]]
    ) -> Iterator[Outcome]:
        models = {role: report[role]["model"] for role in ROLES if report.get(role)}
        base = models.get("base", "")
        with self._database.read() as session:
            wanted = (
                sa.select(CaseRow)
                .options(load_only(*ASKED, raiseload=True))
                .where(CaseRow.id.in_([each["id"] for each in results]))
            )
            cases = {case.id: case for case in session.scalars(wanted)}
        for result in results:
            case = cases.get(result["id"])
            scope = scope_of(case.owner, self._learning) if case is not None else None
            if case is None or scope is None:
                continue
            for role, model in models.items():
                answer = result["answers"].get(role)
                if answer is None or "error" in answer:
                    continue
                asked = asked_of(case, agent=agent, candidate=model, base=base)
                yield Outcome(f"{job}/{case.id}/{role}", case.id, job, scope, asked, float(answer["score"]))


def _read(path: Path) -> Mapping[str, Any]:
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        log.warning("the gate's report %s cannot be read: %s", path, error)
        return {}
    return report if isinstance(report, dict) else {}

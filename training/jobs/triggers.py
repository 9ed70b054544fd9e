"""What starts a job without anybody asking: new cases, a champion that does worse than it did, a changed base.

Each decision is written down once, with what it waits for; the same one again only moves its time.
"""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import sqlalchemy as sa

from adapters_registry import AdapterRegistry
from training.jobs import rows
from training.jobs.errors import BudgetExceeded, Hopeless
from training.jobs.model import CASEBANK, Job, JobRequest, JobState, TriggerView
from training.jobs.names import choose_base
from training.jobs.parts import Parts
from training.jobs.store import JobStore
from training.jobs.tables import TriggerRow

log = logging.getLogger(__name__)

MIN_REWARDS = 30
"""rewarded answers of a champion before its win rate says anything"""
SURE = 1.645
"""standard errors under the gate's figure: 95 %, one-sided"""
RATE_EVERY_S = 60.0


@dataclass(frozen=True)
class TriggerRules:
    """The settings of the triggers; see `configs.training`."""

    min_cases: int = 100
    growth: float = 0.2
    cooldown_s: float = 3600.0
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a job should start: a code, and a line for people."""

    code: str
    text: str


class Triggers:
    """Looks at every agent with cases. `wanted(agent)` tells whether an agent may be trained by itself."""

    def __init__(
        self, store: JobStore, registry: AdapterRegistry, parts: Parts, rules: TriggerRules, wanted: Any = None
    ) -> None:
        self._store = store
        self._registry = registry
        self._parts = parts
        self._rules = rules
        self._wanted = wanted or (lambda _agent: True)
        self._rates: dict[str, tuple[float, Reason | None]] = {}

    def look(self) -> None:
        """Decide for every agent, and start what is due."""
        for agent in self._parts.cases.agents():
            if self._wanted(agent):
                self._decide(agent)

    def _decide(self, agent: str) -> None:
        jobs = self._store.list(agent=agent, limit=50)
        if any(job.state.is_live for job in jobs):
            return
        reason, waiting = self._reason(agent, jobs)
        if reason is None:
            self._note(agent, "wait", "growth", waiting)
        elif (rest_s := self._cooldown(jobs)) > 0:
            self._note(agent, "wait", "cooldown", f"{reason.text}, in the cooldown until {_clock(rest_s)}")
        elif self._rules.dry_run:
            self._note(agent, "dry_run", reason.code, reason.text)
        else:
            self._start(agent, reason)

    def _start(self, agent: str, reason: Reason) -> None:
        request = JobRequest(agent, CASEBANK + agent, origin="trigger", actor="trigger", reason=reason.text)
        try:
            job = self._store.submit(request)
        except BudgetExceeded as error:
            self._note(agent, "wait", "budget", f"{reason.text}; {error.message}")
            return
        log.info("agent %s: %s: job %s", agent, reason.text, job.id)
        self._note(agent, "start", reason.code, reason.text, job.id)

    def _reason(self, agent: str, jobs: tuple[Job, ...]) -> tuple[Reason | None, str]:
        """Why a job should start now, or what is waited for.

        A job that failed or was cancelled counts too: the same cases do not start another.
        """
        last = jobs[0] if jobs else None
        since = _seen_until(last) if last is not None else None
        kept = next((job.progress["dataset"] for job in jobs if "dataset" in job.progress), None)
        known = kept["train"] + kept["validation"] + kept["holdout"] if kept else 0
        needed = max(self._rules.min_cases, math.ceil(self._rules.growth * known))
        new = self._parts.cases.eligible(agent, since)
        waiting = f"{new} of {needed} new cases"
        if new >= needed:
            return Reason("growth", f"{new} new cases, {needed} are enough"), waiting
        if last is None:
            return None, waiting
        return self._changed(agent, last) or self._worse(agent, jobs), waiting

    def _changed(self, agent: str, last: Job) -> Reason | None:
        """Whether the base, or how it renders conversations, is not what the last job trained for."""
        trained = last.progress.get("base")
        if trained is None:
            return None
        try:
            base = choose_base(
                last.request.base or trained["name"],
                agent,
                self._parts.bases(),
                self._registry.snapshot(),
                self._parts.preferred_base(agent),
            )
        except Hopeless:
            return None
        if trained["weights"] != base.weights:
            return Reason("base_changed", f"the base {base.name} is not the one trained for")
        if trained["template"] != base.template:
            return Reason("template_changed", f"the template of {base.name} is not the one trained with")
        return None

    def _worse(self, agent: str, jobs: tuple[Job, ...]) -> Reason | None:
        """Whether the champion's answers are worth less than the gate measured; looked at once a minute."""
        at, known = self._rates.get(agent, (-math.inf, None))
        if time.monotonic() - at < RATE_EVERY_S:
            return known
        found = self._win_rate(agent, jobs)
        self._rates[agent] = (time.monotonic(), found)
        return found

    def _win_rate(self, agent: str, jobs: tuple[Job, ...]) -> Reason | None:
        champion = self._registry.snapshot().champion(agent)
        results = [job.result for job in jobs if job.result and job.result.get("promoted")]
        made = next((each for each in results if champion and each["adapter"] == champion.engine_name), None)
        figure = gate_figure(made["gate"]) if made else None
        if champion is None or made is None or figure is None:
            return None
        since = max(datetime.fromisoformat(made["promoted_at"]), jobs[0].created_at)
        standing = self._parts.cases.standing(agent, champion.engine_name, since)
        if standing.count < MIN_REWARDS:
            return None
        error = math.sqrt(max(standing.mean * (1 - standing.mean), 1 / standing.count) / standing.count)
        if standing.mean + SURE * error >= figure:
            return None
        text = f"win rate {standing.mean:.1%} of {standing.count} answers, and the gate measured {figure:.1%}"
        return Reason("win_rate", text)

    def _cooldown(self, jobs: tuple[Job, ...]) -> float:
        started = [job.started_at or job.created_at for job in jobs if job.state is not JobState.CANCELLED]
        if not started:
            return 0.0
        ready = max(started) + timedelta(seconds=self._rules.cooldown_s)
        return (ready - rows.now()).total_seconds()

    def _note(self, agent: str, action: str, reason: str, detail: str, job: str | None = None) -> None:
        at = rows.now()
        with self._store.database.write() as session:
            latest = sa.select(TriggerRow).filter_by(agent=agent).order_by(TriggerRow.id.desc()).limit(1)
            row = session.scalar(latest)
            if row is None or (row.action, row.reason, row.job) != (action, reason, job):
                session.add(
                    TriggerRow(
                        agent=agent, action=action, reason=reason, detail=detail, job=job, first_at=at, last_at=at
                    )
                )
                log.info("trigger of %s: %s, %s: %s", agent, action, reason, detail)
            else:
                row.detail, row.last_at = detail, at


def _seen_until(job: Job) -> datetime:
    """Cases up to then have been in a job's hands."""
    kept = job.progress.get("dataset")
    return datetime.fromisoformat(kept["at"]) if kept else job.created_at


def gate_figure(report: Any) -> float | None:
    """The candidate's share of right answers in a gate's report."""
    candidate = report.get("candidate") if isinstance(report, dict) else None
    value = candidate.get("task", candidate.get("exact_match")) if isinstance(candidate, dict) else None
    return float(value) if isinstance(value, (int, float)) else None


def decisions(store: JobStore, limit: int = 100) -> tuple[TriggerView, ...]:
    """What the triggers decided, the latest first."""
    with store.database.read() as session:
        found = session.scalars(sa.select(TriggerRow).order_by(TriggerRow.id.desc()).limit(limit))
        return tuple(rows.to_trigger(row) for row in found)


def _clock(rest_s: float) -> str:
    return (rows.now() + timedelta(seconds=rest_s)).strftime("%Y-%m-%d %H:%M:%S UTC")

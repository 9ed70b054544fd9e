"""The refit: a scope's cases make a new router version, which takes over only where it predicts later cases better.

Cases are parted by time: the earlier three quarters are learned from, the later quarter is what the new version is
scored on beside the serving one (see `training.routing.shadow`). What serves is what was scored.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import load_only

from adapters_registry import DatabaseError
from adapters_registry.database import Database
from configs.agents import AgentPreset
from configs.routing import RoutingSettings
from router import AgentRecogniser, Router
from router.agents import KeywordRecogniser, RecogniserBeside
from router.learned import OutcomeEstimator, RouterModel, RouteRow, TooFewRows, fit_outcomes
from training.casebank.tables import CaseRow
from training.routing.outcomes import ASKED, asked_of
from training.routing.predicting import Predictor
from training.routing.recognising import better_recogniser, count_stated, read_stated
from training.routing.scopes import cases_in, counted
from training.routing.shadow import Comparison, Rewarded, compare
from training.routing.tables import EvidenceRow, ScopeRow, locked_state
from training.routing.versions import Versions

log = logging.getLogger(__name__)

LATER = 0.25
"""share of the cases, the latest, that versions are scored on"""
LATEST = 20_000
"""cases that a version is fitted on at most"""
ACTOR = "refit"
Case = TypeVar("Case")


@dataclass(frozen=True, slots=True)
class Scene:
    """Among what the versions serve: presets, and the tiers' bases, the weakest first."""

    presets: Mapping[str, AgentPreset]
    bases: tuple[str, ...]

    def router(self, model: RouterModel | None) -> Router:
        """The router of a model, None being the rules."""
        return Router.from_presets(self.presets) if model is None else Router.from_model(model, self.presets)

    def beside(self, recogniser: AgentRecogniser) -> AgentRecogniser:
        """What would recognise agents with that one learned."""
        return RecogniserBeside(recogniser, KeywordRecogniser(self.presets))

    def predictor(self, model: RouterModel | None) -> Predictor:
        """What that router would predict."""
        return Predictor(self.router(model), self.presets, self.bases)


class Refit:
    """Makes versions for scopes as `routing` asks. `serving(scope)` is the model that serves, None for the rules.

    Methods raise DatabaseError and OSError.
    """

    def __init__(
        self,
        database: Database,
        versions: Versions,
        routing: RoutingSettings,
        scene: Scene,
        serving: Callable[[str], RouterModel | None],
    ) -> None:
        self._database = database
        self._versions = versions
        self._routing = routing
        self._scene = scene
        self._serving = serving

    def run(self, ended: Callable[[], bool] = lambda: False) -> list[str]:
        """Refit the scopes whose time has come and that have enough new cases; versions that took over.

        Stops before the next scope once `ended`. A scope whose fit fails is logged and left until its next time.
        """
        if not self._routing.refit_s or self._routing.learning == "off":
            return []
        now = datetime.now(UTC)
        stated = count_stated(self._database, self._routing.learning)
        rows = self._known(stated)
        taken = []
        for row in rows:
            if ended():
                break
            if row.fitted_at is not None and now - row.fitted_at < timedelta(seconds=self._routing.refit_s):
                continue
            cases = self._count(row.scope) + stated.get(row.scope, 0)
            if cases - row.fitted_cases >= self._routing.refit_min_cases:
                self._note(row.scope, now, cases)
                if (version := self._tried(row.scope)) is not None:
                    taken.append(version)
        return taken

    def _known(self, stated: Mapping[str, int]) -> Sequence[ScopeRow]:
        """The scopes; also those of which nothing is known but agents of cases, as of imported ones."""
        rows = sa.select(ScopeRow).order_by(ScopeRow.scope)
        with self._database.read() as session:
            found = session.scalars(rows).all()
        if stated.keys() <= {row.scope for row in found}:
            return found
        with self._database.write() as session:
            locked_state(session)
            for scope in stated:
                if session.get(ScopeRow, scope) is None:
                    basis = self._scene.predictor(self._serving(scope)).basis
                    session.add(ScopeRow(scope=scope, basis=basis, fitted_at=None, fitted_cases=0))
        with self._database.read() as session:
            return session.scalars(rows).all()

    def _tried(self, scope: str) -> str | None:
        try:
            return self.refit(scope)
        except (DatabaseError, OSError):
            raise
        except Exception:  # what one tenant's cases do to a fit must not stop what the others learn
            log.exception("the router of %s cannot be fitted", scope)
            return None

    def refit(self, scope: str) -> str | None:
        """Fit and score a version for `scope`; its name where it took over. A part that is no better stays as it is."""
        serving = self._serving(scope)
        outcomes, comparison = self._better_outcomes(scope, serving)
        stated = read_stated(self._database, scope)
        recogniser = better_recogniser(*_parted(stated), self._scene.router(serving).recogniser, self._scene.beside)
        if outcomes is None and recogniser is None:
            return None
        kept = serving or RouterModel.of()
        model = RouterModel.of(outcomes or kept.outcomes, recogniser or kept.recogniser)
        report = {"outcomes": comparison and comparison.to_dict(), "recogniser_cases": len(stated) if recogniser else 0}
        self._versions.add(scope, model, "fitted", report)
        self._versions.promote(scope, model.version, actor=ACTOR, detail=json.dumps(report))
        return model.version

    def _better_outcomes(
        self, scope: str, serving: RouterModel | None
    ) -> tuple[OutcomeEstimator | None, Comparison | None]:
        """Outcomes that predict later cases better than what serves, or None; and how the two compare."""
        earlier, later = _parted(self._read(scope))
        old = self._scene.predictor(serving)
        fitted = self._fit(earlier, old.router)
        if fitted is None or not later:
            log.info("router of %s: %d cases are too few to learn outcomes from", scope, len(earlier))
            return None, None
        new = self._scene.predictor(RouterModel.of(fitted, serving.recogniser if serving else None))
        comparison = compare(old, new, earlier, later, weight=self._routing.evidence_weight)
        log.info("outcomes for %s against what serves: %s", scope, comparison.to_dict())
        return (fitted if comparison.is_better else None), comparison

    def _fit(self, cases: Sequence[Rewarded], serving: Router) -> OutcomeEstimator | None:
        """Learn outcomes of the weakest and the strongest tier.

        A case tells of one tier; of the other its row holds what the serving version predicts, so that the fit changes
        nothing there.
        """
        weakest, strongest = self._scene.bases[0], self._scene.bases[-1]
        rows = []
        for case in cases:
            if case.asked.adapter is not None or case.asked.base not in (weakest, strongest):
                continue
            task = case.asked.task
            outlook = serving.outlook(task)
            weak = case.reward if case.asked.base == weakest else outlook.weak
            strong = case.reward if case.asked.base == strongest else outlook.strong
            rows.append(RouteRow(task.text, weak, strong, case.asked.agent or None))
        try:
            return fit_outcomes(rows)
        except TooFewRows:
            return None

    def _read(self, scope: str) -> list[Rewarded]:
        """The scope's latest rewarded cases, in the order in which they were asked."""
        query = (
            sa.select(CaseRow)
            .options(load_only(*ASKED, raiseload=True))
            .where(*counted(), *cases_in(scope))
            .order_by(CaseRow.created_at.desc(), CaseRow.id.desc())
        )
        with self._database.read() as session:
            rows = session.scalars(query.limit(LATEST)).all()
        return [
            Rewarded(row.session or row.id, asked_of(row), row.reward)
            for row in reversed(rows)
            if row.reward is not None
        ]

    def _count(self, scope: str) -> int:
        """Outcomes that have been counted; the sums know, so that the cases need not be looked through."""
        with self._database.read() as session:
            return session.scalar(sa.select(sa.func.sum(EvidenceRow.cases)).filter_by(scope=scope)) or 0

    def _note(self, scope: str, now: datetime, cases: int) -> None:
        with self._database.write() as session:
            locked_state(session)
            values = {"fitted_at": now, "fitted_cases": cases}
            session.execute(sa.update(ScopeRow).where(ScopeRow.scope == scope).values(**values))


def _parted(cases: Sequence[Case]) -> tuple[Sequence[Case], Sequence[Case]]:
    """The earlier and the later ones."""
    split = round(len(cases) * (1 - LATER))
    return cases[:split], cases[split:]

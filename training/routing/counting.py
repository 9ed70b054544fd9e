"""Counting: rewarded cases and the gates' questions become evidence, each once, whatever is judged again or deleted.

`router_outcomes` holds what has been counted, so that a new reward replaces the old one; `router_evidence` holds the
sums, which move by the difference in the same transaction. Serving reads the sums alone.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.orm import Session, load_only

from adapters_registry.database import Database
from configs.routing import Learning
from training.casebank.tables import CaseRow
from training.routing.outcomes import ASKED, Outcome, asked_of
from training.routing.predicting import Prediction, Predictor
from training.routing.scopes import counted, scope_of
from training.routing.tables import EvidenceRow, OutcomeRow, ScopeRow, StateRow, locked_state

log = logging.getLogger(__name__)

PAGE = 500
OVERLAP = timedelta(seconds=60)
"""how long a transaction that rewards a case may take to become visible"""
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_Key = tuple[str, str, str, int]


class Counter:
    """Counts for the setting `learning`; `predictor_of(scope)` predicts as the version that serves there.

    Any number of processes may do so at once. Methods raise DatabaseError.
    """

    def __init__(self, database: Database, learning: Learning, predictor_of: Callable[[str], Predictor]) -> None:
        self._database = database
        self._learning = learning
        self._predictor_of = predictor_of

    def begin(self) -> None:
        """Forget what was counted by another setting."""
        if self._database.scalar(sa.select(StateRow.learning)) == self._learning:
            return
        with self._database.write() as session:
            state = locked_state(session)
            for table in (OutcomeRow, EvidenceRow, ScopeRow):
                session.execute(sa.delete(table))
            state.learning, state.counted_until = self._learning, None
            state.revision += 1

    def count(self) -> int:
        """Count what has been rewarded since the last time; how many outcomes are new or have changed."""
        if self._learning == "off":
            return 0
        changed = 0
        for page in self._rewarded():
            changed += self.add(
                [outcome for row in page if (outcome := self._outcome(row))], until=page[-1].rewarded_at
            )
        return changed

    def add(self, outcomes: Sequence[Outcome], *, until: datetime | None = None) -> int:
        """Count `outcomes`; those that are counted already replace themselves. How many changed anything.

        Those up to `until` need not be looked for again.
        """
        with self._database.read() as session:
            counted_until = session.scalars(sa.select(StateRow.counted_until)).one()
            known = _known(session, outcomes)
        new = [each for each in outcomes if each.id not in known or known[each.id].reward != each.reward]
        is_later = until is not None and (counted_until is None or until > counted_until)
        if not new and not is_later:
            return 0
        predictors = {scope: self._predictor_of(scope) for scope in {each.scope for each in new}}
        predicted = [(each, predictors[each.scope].predict(each.asked)) for each in new]
        with self._database.write() as session:
            state = locked_state(session)
            if is_later:
                state.counted_until = until
            for scope, predictor in predictors.items():
                if session.get(ScopeRow, scope) is None:
                    session.add(ScopeRow(scope=scope, basis=predictor.basis, fitted_at=None, fitted_cases=0))
            changed = _count(session, predicted)
            state.revision += bool(changed)
        return changed

    def recount(self) -> None:
        """Predict again, scope by scope, what was predicted by another version or among other tiers."""
        with self._database.read() as session:
            bases = {row.scope: row.basis for row in session.scalars(sa.select(ScopeRow))}
        for scope, basis in bases.items():
            predictor = self._predictor_of(scope)
            if basis != predictor.basis:
                self._predict_again(scope, predictor)

    def sweep(self) -> int:
        """Forget the outcomes of cases that have been deleted; how many."""
        gone = ~sa.exists().where(CaseRow.id == OutcomeRow.case_id)
        with self._database.write() as session:
            state = locked_state(session)
            swept = session.execute(sa.delete(OutcomeRow).where(gone).returning(OutcomeRow.scope)).scalars().all()
            for scope in set(swept):
                _sum_up(session, scope)
            state.revision += bool(swept)
        return len(swept)

    def _rewarded(self) -> Iterator[list[CaseRow]]:
        """Pages of served cases that the router gave to somebody, in the order of their rewards."""
        with self._database.read() as session:
            until = session.scalars(sa.select(StateRow.counted_until)).one()
        query = sa.select(CaseRow).options(load_only(*ASKED, raiseload=True)).where(*counted())
        at, case_id = until - OVERLAP if until else _BEGINNING, ""
        while True:
            behind = sa.or_(CaseRow.rewarded_at > at, sa.and_(CaseRow.rewarded_at == at, CaseRow.id > case_id))
            with self._database.read() as session:
                page = list(session.scalars(query.where(behind).order_by(CaseRow.rewarded_at, CaseRow.id).limit(PAGE)))
            if not page:
                return
            yield page
            last = page[-1]
            assert last.rewarded_at is not None  # noqa: S101 - it is what was asked for
            at, case_id = last.rewarded_at, last.id

    def _outcome(self, case: CaseRow) -> Outcome | None:
        scope = scope_of(case.owner, self._learning)
        if scope is None or case.reward is None:
            return None
        return Outcome(case.id, case.id, None, scope, asked_of(case), case.reward)

    def _predict_again(self, scope: str, predictor: Predictor) -> None:
        log.info("evidence of %s is counted again", scope)
        after: str | None = ""
        while after is not None:
            after = self._predict_page(scope, predictor, after)
        with self._database.write() as session:
            state = locked_state(session)
            _sum_up(session, scope)
            session.execute(sa.update(ScopeRow).where(ScopeRow.scope == scope).values(basis=predictor.basis))
            state.revision += 1

    def _predict_page(self, scope: str, predictor: Predictor, after: str) -> str | None:
        """Predict the outcomes behind the outcome `after`; the last of them, None where there are no more."""
        with self._database.read() as session:
            found = session.execute(
                sa.select(OutcomeRow, CaseRow)
                .join(CaseRow, CaseRow.id == OutcomeRow.case_id)
                .options(load_only(*ASKED, raiseload=True))
                .where(OutcomeRow.scope == scope, OutcomeRow.id > after)
                .order_by(OutcomeRow.id)
                .limit(PAGE)
            ).all()
        if not found:
            return None
        changes = []
        for outcome, case in found:
            asked = asked_of(case, agent=outcome.agent, candidate=outcome.candidate, base=outcome.base)
            prediction = predictor.predict(asked)
            changes.append({"of": outcome.id, "band": prediction.band, "expected": prediction.probability})
        table = OutcomeRow.metadata.tables[OutcomeRow.__tablename__]
        with self._database.write() as session:
            locked_state(session)
            session.connection().execute(sa.update(table).where(table.c.id == sa.bindparam("of")), changes)
        return str(changes[-1]["of"])


def _known(session: Session, outcomes: Sequence[Outcome]) -> dict[str, OutcomeRow]:
    known: dict[str, OutcomeRow] = {}
    for start in range(0, len(outcomes), PAGE):
        ids = [each.id for each in outcomes[start : start + PAGE]]
        known |= {row.id: row for row in session.scalars(sa.select(OutcomeRow).where(OutcomeRow.id.in_(ids)))}
    return known


def _count(session: Session, predicted: Sequence[tuple[Outcome, Prediction]]) -> int:
    """Store the outcomes, move the sums by the difference; how many were new or have another reward."""
    known = _known(session, [outcome for outcome, _ in predicted])
    moved: dict[_Key, list[float]] = defaultdict(lambda: [0.0, 0.0, 0.0])
    changed = 0
    for outcome, prediction in predicted:
        row = known.get(outcome.id)
        if row is not None and row.reward == outcome.reward:
            continue  # another process was first
        changed += 1
        if row is None:
            row = known[outcome.id] = outcome.row(prediction)
            session.add(row)
        else:
            _move(moved, row, -1)
            row.reward = outcome.reward
        _move(moved, row, 1)
    _settle(session, moved)
    return changed


def _move(moved: dict[_Key, list[float]], row: OutcomeRow, sign: int) -> None:
    sums = moved[row.scope, row.agent, row.candidate, row.band]
    for index, value in enumerate((1.0, row.reward, row.expected)):
        sums[index] += sign * value


def _settle(session: Session, moved: dict[_Key, list[float]]) -> None:
    for key, (cases, reward, expected) in moved.items():
        row = session.get(EvidenceRow, key)
        if row is None:
            scope, agent, candidate, band = key
            row = EvidenceRow(
                scope=scope, agent=agent, candidate=candidate, band=band, cases=0, reward=0.0, expected=0.0
            )
            session.add(row)
        row.cases += round(cases)
        row.reward += reward
        row.expected += expected


def _sum_up(session: Session, scope: str) -> None:
    """Make the scope's evidence from its outcomes anew."""
    session.execute(sa.delete(EvidenceRow).where(EvidenceRow.scope == scope))
    sums = (sa.func.count(), sa.func.sum(OutcomeRow.reward), sa.func.sum(OutcomeRow.expected))
    key = (OutcomeRow.scope, OutcomeRow.agent, OutcomeRow.candidate, OutcomeRow.band)
    session.execute(
        sa.insert(EvidenceRow).from_select(
            ["scope", "agent", "candidate", "band", "cases", "reward", "expected"],
            sa.select(*key, *sums).where(OutcomeRow.scope == scope).group_by(*key),
        )
    )

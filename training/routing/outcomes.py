"""One rewarded answer on its way to being counted."""

from __future__ import annotations

from typing import NamedTuple

from training.casebank.tables import CaseRow
from training.routing.predicting import Asked, Prediction
from training.routing.tables import OutcomeRow

ASKED = (
    CaseRow.id,
    CaseRow.messages,
    CaseRow.tools,
    CaseRow.agent,
    CaseRow.adapter,
    CaseRow.base,
    CaseRow.owner,
    CaseRow.session,
    CaseRow.reward,
    CaseRow.rewarded_at,
)
"""what is read of cases here: not the answers, which may be long"""


class Outcome(NamedTuple):
    """`id` is the case's, or what tells a gate's question and model; `reward` is 0 to 1."""

    id: str
    case_id: str
    gate: str | None
    scope: str
    asked: Asked
    reward: float

    def row(self, prediction: Prediction) -> OutcomeRow:
        """As it is stored."""
        return OutcomeRow(
            id=self.id,
            case_id=self.case_id,
            gate=self.gate,
            scope=self.scope,
            agent=self.asked.agent,
            candidate=self.asked.candidate,
            base=self.asked.base,
            band=prediction.band,
            reward=self.reward,
            expected=prediction.probability,
        )


def asked_of(
    case: CaseRow, *, agent: str | None = None, candidate: str | None = None, base: str | None = None
) -> Asked:
    """What was asked in a case, and of whom: of who answered it, or of a gate's `candidate` on `base` for `agent`."""
    if candidate is None or base is None:
        return Asked(case.messages, bool(case.tools), case.agent or "", case.adapter, case.base or "")
    adapter = None if candidate == base else candidate
    return Asked(case.messages, bool(case.tools), agent or "", adapter, base)

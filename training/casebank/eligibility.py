"""Which cases may be learned from."""

from __future__ import annotations

import sqlalchemy as sa

from training.casebank.tables import CaseRow

REWARD_THRESHOLD = 0.7


def eligible(reward_threshold: float) -> sa.ColumnElement[bool]:
    """The condition: corrected by feedback, or answered with at least this reward."""
    answered = sa.or_(CaseRow.response.is_not(None), CaseRow.label.is_not(None), CaseRow.correction.is_not(None))
    return sa.or_(CaseRow.corrected, sa.and_(CaseRow.reward >= reward_threshold, answered))

"""Users' rewards out of the CaseBank's table, as the canary compares them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import sqlalchemy as sa

from adapters_registry.database import Database
from training.casebank.tables import CaseRow
from training.gate.sequential import Rewarded

ROUTED = ("champion", "canary", "session")
"""reasons of requests that the router gave to a version; who asks for a version by name is no sample"""


class CaseRewards:
    """Reads `Rewards` from the cases. Raises DatabaseError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def rewards(
        self, agent: str, adapter: str, since: datetime | None = None, until: datetime | None = None, *, limit: int
    ) -> Sequence[Rewarded]:
        """See `training.gate.canary.Rewards`; a request without a session is one of its own."""
        wanted = sa.select(CaseRow.id, CaseRow.session, CaseRow.reward).where(
            CaseRow.agent == agent,
            CaseRow.adapter == adapter,
            CaseRow.reward.is_not(None),
            CaseRow.reason.in_(ROUTED),
        )
        if since is not None:
            wanted = wanted.where(CaseRow.created_at >= since)
        if until is not None:
            wanted = wanted.where(CaseRow.created_at < until)
        with self._database.read() as session:
            rows = session.execute(wanted.order_by(CaseRow.created_at.desc()).limit(limit)).all()
        return [Rewarded(row.session or row.id, float(row.reward)) for row in rows]

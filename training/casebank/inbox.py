"""Served requests on their way into the CaseBank.

The gateway only appends what passed through it, which costs it microseconds. Reading, redacting and placing among the
other cases is done by whoever calls `settle`: the worker beside the server, and readers that must see the latest.
Where cases are redacted there is no inbox, because nothing may be written before: the sink settles at once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from training.casebank.bank import CaseBank
from training.casebank.case import Case, storable_key
from training.casebank.errors import CaseInvalid
from training.casebank.served import Served, body_id_of, case_of
from training.casebank.tables import InboxRow
from training.casebank.writing import Prepared, lock_writers

log = logging.getLogger(__name__)

BATCH = 500
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Served).decode


class OutcomeSink:
    """Takes served requests; fits `serving.recorder.CaseSink`."""

    def __init__(self, bank: CaseBank) -> None:
        self._bank = bank

    def write(self, outcomes: Sequence[Any]) -> None:
        """Append the outcomes that hold an answer. Raises DatabaseError."""
        learnable = [each for each in outcomes if each.status == 200 and each.response]
        if not learnable:
            return
        if self._bank.redacts:
            self._bank.add(_cases([_decode(_encode(each)) for each in learnable]))
            return
        rows = [
            {
                "response_id": storable_key(each.request_id),
                "body_id": storable_key(body_id_of(each.response)),
                "outcome": _encode(each),
            }
            for each in learnable
        ]
        with self._bank.database.write() as session:
            session.execute(sa.insert(InboxRow), rows)


def settle(bank: CaseBank, response_id: str | None = None) -> int:
    """Turn what lies in the inbox into cases, oldest first; only that of one response, if given. Returns how many.

    Safe to call from several processes at once. Raises DatabaseError.
    """
    settled = 0
    while batch := _read(bank, response_id):
        settled += _place(bank, batch)
        if len(batch) < BATCH:
            break
    return settled


def _read(bank: CaseBank, response_id: str | None) -> list[tuple[int, bytes]]:
    query = sa.select(InboxRow.id, InboxRow.outcome).order_by(InboxRow.id).limit(BATCH)
    if response_id is not None:
        key = storable_key(response_id)
        query = query.where(sa.or_(InboxRow.response_id == key, InboxRow.body_id == key))
    with bank.database.read() as session:
        return [(row.id, row.outcome) for row in session.execute(query)]


def _place(bank: CaseBank, batch: Sequence[tuple[int, bytes]]) -> int:
    prepared = {row_id: _prepare(bank, outcome) for row_id, outcome in batch}
    with bank.database.write() as session:
        lock_writers(session)
        # another process may have settled some of them since they were read
        gone = sa.delete(InboxRow).where(InboxRow.id.in_(prepared)).returning(InboxRow.id)
        mine = sorted(session.scalars(gone))
        chosen = [ready for row_id in mine if (ready := prepared[row_id]) is not None]
        return len(bank.place(session, chosen).ids) if chosen else 0


def _prepare(bank: CaseBank, outcome: bytes) -> Prepared | None:
    """One case by itself: one that cannot be stored must not keep the others out."""
    try:
        ready = bank.prepare(_cases([_decode(outcome)]))
    except (CaseInvalid, msgspec.DecodeError) as error:
        log.warning("a served request cannot become a case: %s", error)
        return None
    return ready[0] if ready else None


def _cases(served: Sequence[Served]) -> list[Case]:
    return [case for each in served if (case := case_of(each)) is not None]

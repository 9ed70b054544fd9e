"""Served requests on their way into the CaseBank.

The gateway only appends what passed through it, which costs it microseconds. Reading, redacting and placing among the
other cases is done by whoever calls `settle`: the worker beside the server, and readers that must see the latest.
Where cases are redacted there is no inbox, because nothing may be written before: the sink settles at once.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
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

BATCHES = 4
"""rows of the inbox that are placed in one transaction"""
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Served]).decode


class OutcomeSink:
    """Takes served requests; fits `serving.recorder.CaseSink`."""

    def __init__(self, bank: CaseBank) -> None:
        self._bank = bank

    def write(self, outcomes: Sequence[Any]) -> None:
        """Append the outcomes that hold an answer, as one row: it shares the gateway's interpreter, which must go on.

        Raises DatabaseError.
        """
        learnable = [each for each in outcomes if each.status == 200 and each.response]
        if not learnable:
            return
        encoded = _encode(learnable)
        if self._bank.redacts:
            self._bank.add(_cases(_decode(encoded)))
            return
        names = {name for each in learnable for name in (each.request_id, body_id_of(each.response)) if name}
        with self._bank.database.write() as session:
            session.execute(sa.insert(InboxRow), {"names": _lines(names), "outcomes": encoded})


def settle(bank: CaseBank, response_id: str | None = None) -> int:
    """Turn what lies in the inbox into cases, oldest first; given a response, only what was written with it.

    Returns how many. Safe to call from several processes at once. Raises DatabaseError.
    """
    settled = 0
    while batches := _read(bank, BATCHES, response_id):
        settled += _place(bank, batches)
    return settled


def settle_next(bank: CaseBank) -> bool:
    """Do so with what was written first, and tell whether there was anything. Raises DatabaseError."""
    batches = _read(bank, 1)
    _place(bank, batches)
    return bool(batches)


def _read(bank: CaseBank, limit: int, response_id: str | None = None) -> list[tuple[int, bytes]]:
    query = sa.select(InboxRow.id, InboxRow.outcomes).order_by(InboxRow.id).limit(limit)
    if response_id is not None:
        query = query.where(InboxRow.names.contains(_lines([response_id]), autoescape=True))
    with bank.database.read() as session:
        return [(row.id, row.outcomes) for row in session.execute(query)]


def _place(bank: CaseBank, batches: Sequence[tuple[int, bytes]]) -> int:
    prepared = {row_id: _prepare(bank, outcomes) for row_id, outcomes in batches}
    with bank.database.write() as session:
        lock_writers(session)
        # another process may have settled some of them since they were read
        gone = sa.delete(InboxRow).where(InboxRow.id.in_(prepared)).returning(InboxRow.id)
        mine = sorted(session.scalars(gone))
        chosen = [ready for row_id in mine for ready in prepared[row_id]]
        return len(bank.place(session, chosen).ids) if chosen else 0


def _prepare(bank: CaseBank, outcomes: bytes) -> list[Prepared]:
    """The cases of one row. What cannot be stored must not keep the others out."""
    ready: list[Prepared] = []
    for case in _cases(_decode(outcomes)):
        try:
            ready += bank.prepare([case])
        except CaseInvalid as error:
            log.warning("request %s cannot become a case: %s", case.response_id, error)
    return ready


def _cases(served: Sequence[Served]) -> list[Case]:
    return [case for each in served if (case := case_of(each)) is not None]


def _lines(names: Iterable[str]) -> str:
    return "".join(f"\n{storable_key(name)}\n" for name in names)

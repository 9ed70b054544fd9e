"""Cases with the same content: which of them stands for all (the head), and who takes over when it is removed.

Only a head is in the index of near duplicates; the others have its signature.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import sqlalchemy as sa
from sqlalchemy.orm import Session

from training.casebank.signing import keys_of
from training.casebank.tables import BandRow, CaseRow


def become_head(session: Session, row: CaseRow) -> None:
    """Let `row` stand for all cases with its content: whoever was judged last does."""
    old = row.repeat_of
    session.flush()
    session.execute(
        sa.update(CaseRow).where(sa.or_(CaseRow.id == old, CaseRow.repeat_of == old)).values(repeat_of=row.id)
    )
    session.execute(sa.update(CaseRow).where(CaseRow.id == row.id).values(repeat_of=None))
    _put_into_index(session, row)


def remove(session: Session, rows: Sequence[CaseRow]) -> int:
    """Delete `rows`, and let others with the same content take their places. Returns how many were deleted."""
    ids = [row.id for row in rows]
    keys = {key for row in rows for key in keys_of(row.agent, row.signature)}
    contents = {(row.agent, row.content_hash) for row in rows}
    for some in _pieces(sorted(keys)):
        session.execute(sa.delete(BandRow).where(BandRow.key.in_(some), BandRow.case_id.in_(ids)))
    session.execute(sa.delete(CaseRow).where(CaseRow.id.in_(ids)))
    left: dict[tuple[str | None, str], list[CaseRow]] = defaultdict(list)
    hashes = sorted({content for _, content in contents})
    for row in session.scalars(sa.select(CaseRow).where(CaseRow.content_hash.in_(hashes))):
        if (row.agent, row.content_hash) in contents:
            left[row.agent, row.content_hash].append(row)
    for alike in left.values():
        _choose_head(session, alike)
    return len(ids)


def _choose_head(session: Session, alike: Sequence[CaseRow]) -> None:
    # the head where it is left, else whoever was judged last
    head = max(alike, key=lambda row: (row.repeat_of is None, row.rewarded_at or row.created_at))
    for row in alike:
        row.repeat_of = None if row is head else head.id
    session.flush()
    _put_into_index(session, head)


def _put_into_index(session: Session, row: CaseRow) -> None:
    keys = keys_of(row.agent, row.signature)
    known = set(session.scalars(sa.select(BandRow.key).where(BandRow.key.in_(keys), BandRow.case_id == row.id)))
    if missing := keys - known:
        session.execute(sa.insert(BandRow), [{"key": key, "case_id": row.id} for key in missing])


def _pieces(keys: Sequence[int], size: int = 10_000) -> list[Sequence[int]]:
    return [keys[start : start + size] for start in range(0, len(keys), size)]

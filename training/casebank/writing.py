"""How cases become rows: prepared outside of the transaction, then placed among those that are there.

Placing decides three things at once, so writers take turns: whether a case repeats another, which cluster it joins, and
its side of the split. A case of a known episode joins that episode's cluster and side; else one whose prompt is a near
duplicate joins the cluster of the most similar; else it founds a cluster, and its side is drawn.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import InstrumentedAttribute, Session

from training.casebank.case import (
    FIELDS,
    Case,
    Split,
    content_hash,
    draw_split,
    storable,
    storable_json,
    storable_key,
)
from training.casebank.duplicates import normalise
from training.casebank.errors import CaseInvalid
from training.casebank.ids import new_id
from training.casebank.signing import keys_of, sign, similar
from training.casebank.tables import BandRow, CaseRow
from training.casebank.templates import STEP, fill_one_template

CHUNK = 500
"""cases placed at once"""
BUCKET = 8
"""cases kept under one key: with more, as where prompts are one template, each new case would meet all before it"""
TRIED = 5
"""near duplicates that are looked at for one that does not merely fill the same template"""
WRITER_LOCK = 0x6C6F726163617365
"""key of PostgreSQL's advisory lock ("loracase" in ASCII)"""
_KEYS = ("agent", "episode", "session", "user", "owner", "response_id", "body_id", "task_type", "adapter", "base")
_TEXTS = ("correction", "label", "reward_source", "reason")


@dataclass(frozen=True, slots=True)
class Prepared:
    """A checked case on its way to a row: all that can be known without looking at others."""

    case: Case
    signature: bytes
    keys: frozenset[int]
    text: str


@dataclass(frozen=True, slots=True)
class _Known:
    """Of a stored case, what decides about the next."""

    id: str
    cluster: str
    split: Split
    signature: bytes


@dataclass(slots=True)
class Placed:
    """What came of a batch: ids of the new cases, and of those that stand for the ones left out, in their order."""

    added: list[str] = dataclasses.field(default_factory=list)
    existing: list[str] = dataclasses.field(default_factory=list)


def prepare(cases: Iterable[Case]) -> list[Prepared]:
    """Check and complete `cases`. Raises CaseInvalid."""
    checked = [_completed(case) for case in cases]
    texts = [case.prompt_text for case in checked]
    return [
        Prepared(case, signature, frozenset(keys_of(case.agent, signature)), normalise(text))
        for case, signature, text in zip(checked, sign(texts), texts, strict=True)
    ]


def place(session: Session, prepared: Sequence[Prepared], holdout_share: float) -> Placed:
    """Insert `prepared`. The caller's transaction must hold the writers' lock."""
    placed = Placed()
    for start in range(0, len(prepared), CHUNK):
        _Placing(session, prepared[start : start + CHUNK], holdout_share).run(placed)
    return placed


def lock_writers(session: Session) -> None:
    """Wait for the turn to place cases; SQLite's write lock, which the session holds, is enough there."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(sa.select(sa.func.pg_advisory_xact_lock(WRITER_LOCK)))


class _Placing:
    """One chunk. What its own earlier cases founded counts for the later ones."""

    def __init__(self, session: Session, chunk: Sequence[Prepared], holdout_share: float) -> None:
        self._session = session
        self._chunk = chunk
        self._share = holdout_share
        self._heads: dict[tuple[str | None, str], tuple[_Known, str]] = {}
        self._episodes: dict[tuple[str | None, str], _Known] = {}
        self._neighbours: dict[int, list[_Known]] = defaultdict(list)
        self._texts: dict[str, str] = {}
        self._rows: list[dict[str, Any]] = []
        self._band_rows: list[dict[str, Any]] = []

    def run(self, placed: Placed) -> None:
        self._look_up()
        for each in self._chunk:
            head = self._heads.get((each.case.agent, each.case.content_hash))
            if head is not None and each.case.source != "served" and head[1] != "served":
                placed.existing.append(head[0].id)
                continue
            self._take(each, head)
            placed.added.append(each.case.id)
        connection = self._session.connection()  # rows as they are, without the unit of work: half the time
        for table, rows in ((CaseRow.__table__, self._rows), (BandRow.__table__, self._band_rows)):
            if rows:
                connection.execute(sa.insert(table), rows)  # type: ignore[arg-type]

    def _take(self, each: Prepared, head: tuple[_Known, str] | None) -> None:
        case = each.case
        known = self._kin(each, head)
        cluster = known.cluster if known else case.id
        split = case.split or (known.split if known else draw_split(case.episode or each.text, self._share))
        me = _Known(case.id, cluster, split, each.signature)
        self._texts[case.id] = each.text
        repeat_of = None
        if head is None:
            self._heads[case.agent, case.content_hash] = (me, case.source)
        elif case.source == "served":
            repeat_of = head[0].id
        else:  # what was imported stands for what was only served
            self._replace_head(head[0].id, case.id)
            self._heads[case.agent, case.content_hash] = (me, case.source)
        if case.episode:
            self._episodes.setdefault((case.agent, case.episode), me)
        if repeat_of is None:  # a repeat has a head with the same signature
            for key in each.keys:
                if len(bucket := self._neighbours[key]) < BUCKET:
                    bucket.append(me)
                    self._band_rows.append({"key": key, "case_id": case.id})
        self._rows.append(_row(case, each.signature) | {"cluster": cluster, "split": split, "repeat_of": repeat_of})

    def _kin(self, each: Prepared, head: tuple[_Known, str] | None) -> _Known | None:
        """The stored case whose cluster and side this one takes."""
        if head is not None:
            return head[0]
        episode = self._episodes.get((each.case.agent, each.case.episode)) if each.case.episode else None
        if episode is not None:
            return episode
        near = list({known.id: known for key in each.keys for known in self._neighbours.get(key, ())}.values())
        for at in similar(each.signature, [known.signature for known in near])[:TRIED]:
            if len(each.text.split()) < STEP or not fill_one_template(each.text, self._text_of(near[at])):
                return near[at]
        return None

    def _text_of(self, known: _Known) -> str:
        """The normal form of a stored prompt; read for all neighbours at once, since few chunks need any."""
        if known.id not in self._texts:
            ids = {each.id for bucket in self._neighbours.values() for each in bucket} - self._texts.keys()
            rows = self._session.execute(sa.select(CaseRow.id, CaseRow.messages).where(self._among(CaseRow.id, ids)))
            self._texts |= {row.id: normalise(Case(row.messages).prompt_text) for row in rows}
        return self._texts[known.id]

    def _replace_head(self, old: str, new: str) -> None:
        for row in self._rows:
            if row["id"] == old or row["repeat_of"] == old:
                row["repeat_of"] = new
        self._session.execute(
            sa.update(CaseRow).where(sa.or_(CaseRow.id == old, CaseRow.repeat_of == old)).values(repeat_of=new)
        )

    def _look_up(self) -> None:
        hashes = {each.case.content_hash for each in self._chunk}
        for row in self._select(self._among(CaseRow.content_hash, hashes), CaseRow.repeat_of.is_(None)):
            self._heads[row.agent, row.content_hash] = (_known(row), row.source)
        episodes = {each.case.episode for each in self._chunk if each.case.episode}
        if episodes:
            for row in self._select(self._among(CaseRow.episode, episodes)):
                self._episodes.setdefault((row.agent, row.episode), _known(row))
        keys = self._among(BandRow.key, {key for each in self._chunk for key in each.keys})
        met = self._session.execute(sa.select(BandRow.key, BandRow.case_id).where(keys)).all()
        known = {row.id: _known(row) for row in self._select(self._among(CaseRow.id, {pair.case_id for pair in met}))}
        for key, case_id in met:
            if case_id in known:
                self._neighbours[key].append(known[case_id])

    def _among(self, column: InstrumentedAttribute[Any], values: Collection[Any]) -> sa.ColumnElement[bool]:
        """`column IN values` as one parameter: thousands of them take longer to render than to look up."""
        if self._session.get_bind().dialect.name == "postgresql":
            return column == sa.any_(sa.literal(list(values), postgresql.ARRAY(column.type)))
        each = sa.func.json_each(json.dumps(list(values))).table_valued("value")
        return column.in_(sa.select(each.c.value))

    def _select(self, *where: sa.ColumnElement[bool]) -> Sequence[Any]:
        columns = (
            CaseRow.id,
            CaseRow.agent,
            CaseRow.source,
            CaseRow.episode,
            CaseRow.content_hash,
            CaseRow.cluster,
            CaseRow.split,
            CaseRow.signature,
        )
        return self._session.execute(sa.select(*columns).where(*where).order_by(CaseRow.id)).all()


def _known(row: Any) -> _Known:
    return _Known(row.id, row.cluster, row.split, row.signature)


def _completed(case: Case) -> Case:
    """`case` with its id, time and hash, and nothing in it that a database refuses."""
    if not case.messages and case.source != "served":
        raise CaseInvalid("a case needs at least one message", param="messages")
    if case.reward is not None and not 0 <= case.reward <= 1:
        raise CaseInvalid(f"reward {case.reward} is not between 0 and 1", param="reward")
    now = datetime.now(UTC)
    created = case.created_at or now
    clean: dict[str, Any] = {name: storable_key(getattr(case, name)) for name in _KEYS}
    clean |= {name: None if (text := getattr(case, name)) is None else storable(text) for name in _TEXTS}
    clean |= {name: storable_json(getattr(case, name)) for name in ("messages", "tools", "sampling", "response")}
    clean["corrected"] = case.corrected or case.correction is not None
    if case.reward is not None:
        clean["rewarded_at"] = case.rewarded_at or created
    clean |= {"id": case.id or new_id(), "created_at": created}
    cleaned = Case(**{name: clean[name] if name in clean else getattr(case, name) for name in FIELDS})
    return dataclasses.replace(cleaned, content_hash=content_hash(cleaned))


def _row(case: Case, signed: bytes) -> dict[str, Any]:
    return {name: getattr(case, name) for name in FIELDS} | {"signature": signed}

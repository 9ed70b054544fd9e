"""The CaseBank's operations. Thread-safe; any number of processes may share its database."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from adapters_registry.database import Database
from configs.training import TrainingSettings
from training.casebank.case import FIELDS, Case, Split, storable, storable_key
from training.casebank.eligibility import REWARD_THRESHOLD, eligible
from training.casebank.errors import CaseInvalid, CaseNotFound
from training.casebank.repeats import become_head, remove
from training.casebank.statistics import AgentStatistics, VersionStatistics, by_agent, by_version
from training.casebank.tables import CaseRow
from training.casebank.writing import Prepared, lock_writers, place, prepare

if TYPE_CHECKING:
    from training.casebank.exporting import ExportReport
    from training.casebank.importing import ImportReport, OnProgress

_STREAM = 500

Redact = Callable[[Case], Case]


@dataclass(frozen=True, slots=True)
class Added:
    """What `add` did: ids of the new cases, how many were there already, and the ids that stand for those."""

    ids: tuple[str, ...]
    duplicates: int
    existing: tuple[str, ...] = ()


class CaseBank:
    """Cases in a database. `redactor` changes every case before it is written.

    All methods raise DatabaseError when the database cannot be reached.
    """

    def __init__(self, database: Database, *, redactor: Redact | None = None, holdout_share: float = 0.2) -> None:
        self.database = database
        self._redactor = redactor
        self._holdout_share = holdout_share

    @classmethod
    def from_settings(cls, database: Database, training: TrainingSettings) -> CaseBank:
        """As the settings have it."""
        from training.casebank.redaction import redact

        return cls(database, redactor=redact if training.redact else None, holdout_share=training.holdout_share)

    @property
    def redacts(self) -> bool:
        """Whether cases are changed before they are written."""
        return self._redactor is not None

    # -- writing -----------------------------------------------------------------------------------------------------

    def prepare(self, cases: Iterable[Case]) -> list[Prepared]:
        """Redact, check and sign `cases`, without the database. Raises CaseInvalid."""
        return prepare(cases if self._redactor is None else map(self._redactor, cases))

    def add(self, cases: Iterable[Case]) -> Added:
        """Store `cases` in one transaction. Served repeats are kept, others with known content are left out.

        Raises CaseInvalid, and stores none then.
        """
        prepared = self.prepare(cases)
        with self.database.write() as session:
            return self.place(session, prepared)

    def place(self, session: Session, prepared: Sequence[Prepared]) -> Added:
        """Store what was prepared in the caller's transaction."""
        lock_writers(session)
        placed = place(session, prepared, self._holdout_share)
        return Added(tuple(placed.added), len(placed.existing), tuple(placed.existing))

    def feedback(
        self,
        case_id: str,
        reward: float | None = None,
        label: str | None = None,
        correction: str | None = None,
        *,
        source: str = "api",
        owner: str | None = None,
    ) -> Case:
        """Note what an answer was worth; `case_id` is a case's id or a response's.

        A label or a correction without a reward tells one: 1 where it is what was answered, else 0; a reward given
        before stays. With `owner`, cases of others count as unknown. Raises CaseNotFound and CaseInvalid.
        """
        if reward is None and label is None and correction is None:
            raise CaseInvalid("feedback needs a reward, a label or a correction", param="reward")
        if reward is not None and not 0 <= reward <= 1:
            raise CaseInvalid(f"reward {reward} is not between 0 and 1", param="reward")
        self.settle(case_id)
        with self.database.write() as session:
            lock_writers(session)
            row = session.scalar(_named(case_id, owner))
            if row is None:
                raise CaseNotFound(f"no case is named '{case_id}'", param="response_id")
            self._judge(row, reward, label, correction, storable(source)[:255])
            if row.repeat_of is not None:
                become_head(session, row)
            session.flush()
            return _case(row)

    def _judge(
        self, row: CaseRow, reward: float | None, label: str | None, correction: str | None, source: str
    ) -> None:
        case = _case(row)
        given = dataclasses.replace(case, label=label, correction=correction)
        if self._redactor is not None:
            given = self._redactor(given)
        better = given.correction if given.correction is not None else given.label
        if better is not None:
            better = storable(better)
            same = case.answer is not None and better.strip() == case.answer.strip()
            row.corrected = not same
            row.label = row.label if given.label is None else storable(given.label)
            row.correction = row.correction if given.correction is None else storable(given.correction)
            if reward is None and row.reward is None:
                reward = float(same)
        if reward is not None:
            row.reward, row.reward_source = reward, source
        row.rewarded_at = datetime.now(UTC)

    def settle(self, response_id: str | None = None) -> int:
        """Make cases of the served requests that wait for it, or of one, and return how many; readers do so first."""
        from training.casebank.inbox import settle

        return settle(self, response_id)

    def settle_next(self) -> bool:
        """Do so with what was written first, and tell whether there was anything."""
        from training.casebank.inbox import settle_next

        return settle_next(self)

    def import_file(
        self,
        path: Path,
        format: str | None,  # noqa: A002 - what users call it
        agent: str,
        *,
        dry_run: bool = False,
        on_progress: OnProgress | None = None,
    ) -> ImportReport:
        """Import the good rows of a file in one transaction; `format` None guesses. With `dry_run` nothing stays.

        Raises ImportFailed when the file cannot be read, or is in another format; nothing is stored then.
        """
        from training.casebank.importing import import_file

        return import_file(self, path, format, agent, dry_run=dry_run, on_progress=on_progress)

    def export_file(
        self,
        path: Path,
        format: str,  # noqa: A002 - what users call it
        agent: str,
        *,
        split: Split | None = None,
        min_reward: float | None = None,
    ) -> ExportReport:
        """Write the agent's cases to a new file: CSV or TSV by its name, else JSON lines; gzip where it ends in .gz.

        Cases that the format has no place for are counted and left out. Raises ImportFailed.
        """
        from training.casebank.exporting import export_file

        return export_file(self, path, format, agent, split=split, min_reward=min_reward)

    # -- reading -----------------------------------------------------------------------------------------------------

    def get(self, case_id: str, *, owner: str | None = None) -> Case:
        """A case by its id or by a response's. Raises CaseNotFound."""
        case = self.find_response(case_id, owner=owner)
        if case is None:
            raise CaseNotFound(f"no case is named '{case_id}'", param="id")
        return case

    def find_response(self, response_id: str, *, owner: str | None = None) -> Case | None:
        """The case of a response (its `x-request-id`, or the id in its body) or of that id; the newest of several."""
        self.settle(response_id)
        with self.database.read() as session:
            row = session.scalar(_named(response_id, owner))
            return None if row is None else _case(row)

    def list(
        self,
        *,
        agent: str | None = None,
        limit: int = 20,
        after: str | None = None,
        session: str | None = None,
        user: str | None = None,
        owner: str | None = None,
        source: str | None = None,
        adapter: str | None = None,
        split: Split | None = None,
        rewarded: bool | None = None,
    ) -> list[Case]:
        """At most `limit` cases, the newest first, beginning after the case `after`."""
        self.settle()
        wanted = {"agent": agent, "session": session, "user": user, "owner": owner, "adapter": adapter}
        where = [getattr(CaseRow, name) == storable_key(value) for name, value in wanted.items() if value is not None]
        where += [] if source is None else [CaseRow.source == source]
        where += [] if split is None else [CaseRow.split == split]
        where += _rewarded(rewarded)
        where += [] if after is None else [CaseRow.id < after]
        with self.database.read() as opened:
            query = sa.select(CaseRow).where(*where).order_by(CaseRow.id.desc()).limit(limit)
            return [_case(row) for row in opened.scalars(query)]

    def cases(
        self, agent: str, split: Split | None = None, rewarded: bool | None = None, *, repeats: bool = False
    ) -> Iterator[Case]:
        """The agent's cases, the oldest first, read as they are asked for; one for each content unless `repeats`."""
        self.settle()
        where = [CaseRow.agent == storable_key(agent), *_rewarded(rewarded)]
        where += [] if split is None else [CaseRow.split == split]
        where += [] if repeats else [CaseRow.repeat_of.is_(None)]
        columns = [getattr(CaseRow, name) for name in FIELDS]
        query = sa.select(*columns).where(*where).order_by(CaseRow.id).execution_options(yield_per=_STREAM)
        with self.database.read() as session:
            for row in session.execute(query):
                yield Case(*row)

    def agents(self) -> Sequence[str]:
        """Agents that have cases, besides what waits in the inbox."""
        with self.database.read() as session:
            query = sa.select(CaseRow.agent).where(CaseRow.agent.is_not(None)).distinct().order_by(CaseRow.agent)
            return [agent for agent in session.scalars(query) if agent is not None]

    def count_eligible(
        self, agent: str, reward_threshold: float = REWARD_THRESHOLD, since: datetime | None = None
    ) -> int:
        """How many contents of the agent may be learned: corrected ones, and answers of at least this reward.

        Both sides of the split count. With `since`, those that became so later: by being written or judged. What waits
        in the inbox has not been judged, so it does not count.
        """
        where = [CaseRow.agent == storable_key(agent), CaseRow.repeat_of.is_(None), eligible(reward_threshold)]
        if since is not None:
            where.append(sa.func.coalesce(CaseRow.rewarded_at, CaseRow.created_at) > since)
        with self.database.read() as session:
            return session.scalar(sa.select(sa.func.count()).select_from(CaseRow).where(*where)) or 0

    def stats(self, agent: str | None = None, reward_threshold: float = REWARD_THRESHOLD) -> Sequence[AgentStatistics]:
        """What there is of each agent, or of one; none of an agent without cases."""
        self.settle()
        return by_agent(self.database, agent, reward_threshold)

    def version_stats(
        self, agent: str, since: datetime | None = None, reward_threshold: float = REWARD_THRESHOLD
    ) -> Sequence[VersionStatistics]:
        """What the answers of each version for `agent` were worth, of requests after `since`."""
        self.settle()
        return by_version(self.database, agent, since, reward_threshold)

    # -- deleting ----------------------------------------------------------------------------------------------------

    def delete(
        self,
        *,
        ids: Iterable[str] | None = None,
        user: str | None = None,
        session: str | None = None,
        agent: str | None = None,
        older_than: timedelta | datetime | None = None,
    ) -> int:
        """Remove the cases that fulfil all that is given, for good, and return how many.

        A case that stood for repeats hands that on to one of them. Raises CaseInvalid where nothing is given.
        """
        where: list[sa.ColumnElement[bool]] = []
        for column, value in ((CaseRow.user, user), (CaseRow.session, session), (CaseRow.agent, agent)):
            where += [] if value is None else [column == storable_key(value)]
        if older_than is not None:
            limit = datetime.now(UTC) - older_than if isinstance(older_than, timedelta) else older_than
            where.append(CaseRow.created_at < limit)
        if ids is not None:
            where.append(CaseRow.id.in_(list(ids)))
        if not where:
            raise CaseInvalid("say which cases: by user, session, agent, id or age")
        self.settle()
        removed = 0
        while batch := self._delete_some(where):  # in turns, so that other writers get theirs
            removed += batch
        return removed

    def expire(self, retention_days: float | None) -> int:
        """Delete what is older, and return how many cases that was; None keeps all."""
        return 0 if retention_days is None else self.delete(older_than=timedelta(days=retention_days))

    def _delete_some(self, where: Sequence[sa.ColumnElement[bool]]) -> int:
        with self.database.write() as session:
            lock_writers(session)
            return remove(session, session.scalars(sa.select(CaseRow).where(*where).limit(_STREAM)).all())


def _rewarded(rewarded: bool | None) -> list[sa.ColumnElement[bool]]:
    if rewarded is None:
        return []
    return [CaseRow.reward.is_not(None) if rewarded else CaseRow.reward.is_(None)]


def _named(name: str, owner: str | None) -> sa.Select[Any]:
    key = storable_key(name)
    query = sa.select(CaseRow).where(sa.or_(CaseRow.id == key, CaseRow.response_id == key, CaseRow.body_id == key))
    if owner is not None:
        query = query.where(CaseRow.owner == owner)
    return query.order_by(CaseRow.id.desc()).limit(1)


def _case(row: CaseRow) -> Case:
    return Case(**{name: getattr(row, name) for name in FIELDS})

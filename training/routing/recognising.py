"""Agent recognition out of cases whose agent somebody stated: those that were imported, or added by hand.

The agent of a served case may be what a recogniser said, and is not learned from: it would confirm itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import sqlalchemy as sa

from adapters_registry.database import Database
from configs.routing import Learning
from router import AgentRecogniser, Task, resolve_agent
from router.learned import TooFewRows, fit_recogniser
from training.casebank.tables import CaseRow
from training.gate.bootstrap import paired_bootstrap
from training.routing.scopes import cases_in, scope_of

LATEST = 20_000
ERROR = 0.05


_IS_STATED = (CaseRow.source != "served", CaseRow.agent.is_not(None), CaseRow.repeat_of.is_(None))


class Stated(NamedTuple):
    """A task's text, and its agent."""

    text: str
    agent: str


def read_stated(database: Database, scope: str) -> list[Stated]:
    """The latest of the scope's cases whose agent was stated, the oldest first. Raises DatabaseError."""
    query = (
        sa.select(CaseRow.messages, CaseRow.agent)
        .where(*_IS_STATED, *cases_in(scope))
        .order_by(CaseRow.id.desc())
        .limit(LATEST)
    )
    with database.read() as session:
        rows = session.execute(query).all()
    return [Stated(Task.from_messages(messages).text, agent) for messages, agent in reversed(rows)]


def count_stated(database: Database, learning: Learning) -> Mapping[str, int]:
    """How many cases state their agent, by scope. Raises DatabaseError."""
    query = sa.select(CaseRow.owner, sa.func.count()).where(*_IS_STATED).group_by(CaseRow.owner)
    found: dict[str, int] = defaultdict(int)
    with database.read() as session:
        for owner, cases in session.execute(query):
            if (scope := scope_of(owner, learning)) is not None:
                found[scope] += cases
    return found


def better_recogniser(
    earlier: Sequence[Stated],
    later: Sequence[Stated],
    serving: AgentRecogniser,
    beside: Callable[[AgentRecogniser], AgentRecogniser],
) -> AgentRecogniser | None:
    """Learn from the earlier cases; None where that does not recognise more of the later ones beyond doubt.

    `beside` makes of what was learned what would serve, with the rules for agents that have no cases.
    """
    if not later:
        return None
    try:
        fitted = fit_recogniser([each.text for each in earlier], [each.agent for each in earlier])
    except TooFewRows:
        return None
    would_serve = beside(fitted)
    gains = [_is_right(would_serve, each) - _is_right(serving, each) for each in later]
    return fitted if paired_bootstrap(gains, error=ERROR).lower > 0 else None


def _is_right(recogniser: AgentRecogniser, stated: Stated) -> float:
    recognised, _ = recogniser.recognise(stated.text)
    # an agent has one name in the presets and may have another, with `-agent`, in the registry
    return float(recognised is not None and resolve_agent(recognised, (stated.agent,)) is not None)

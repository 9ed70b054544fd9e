"""Whose cases change whose routes.

A tenant is the owner of cases: an API key's name, `local` where no keys are configured. A scope is what cases are
counted and fitted in; by the setting `routing.learning` that is

- `tenant`: the owner's own scope; cases that no key owns (imports) go to `EVERYONE`, which all may see,
- `shared`: one scope for all cases, `POOL`,
- `off`: none.

The pool is a scope of its own, so that nothing in it is seen any more once the setting is `tenant` again.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from configs.routing import Learning
from router import EVERYONE
from training.casebank.tables import CaseRow

POOL = "+"


def scope_of(owner: str | None, learning: Learning) -> str | None:
    """The scope in which a case of `owner` counts; None for none."""
    if learning == "off":
        return None
    return POOL if learning == "shared" else owner or EVERYONE


def readers_of(scope: str, learning: Learning) -> str | None:
    """Whose decisions what lies in `scope` changes: an owner, or EVERYONE; None for nobody's."""
    if learning == "tenant":
        return None if scope == POOL else scope
    return EVERYONE if scope == POOL and learning == "shared" else None


def scope_named(key: str | None, learning: Learning) -> str:
    """The scope of what is installed for an API key, or for everyone."""
    if key is not None:
        return key
    return POOL if learning == "shared" else EVERYONE


def counted() -> Sequence[sa.ColumnElement[bool]]:
    """Which cases say something of a candidate: served and rewarded ones. Who asks for one by name is no sample."""
    return (
        CaseRow.source == "served",
        CaseRow.reward.is_not(None),
        CaseRow.reason != "explicit",
        CaseRow.base.is_not(None),
    )


def cases_in(scope: str) -> Sequence[sa.ColumnElement[bool]]:
    """Which cases count in `scope`."""
    if scope == POOL:
        return ()
    return (CaseRow.owner.is_(None) if scope == EVERYONE else CaseRow.owner == scope,)

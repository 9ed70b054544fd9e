"""Which models serve now, by scope, kept in memory while they do."""

from __future__ import annotations

import logging

from router import EVERYONE
from router.learned import RouterModel, RouterModelInvalid
from training.routing.scopes import POOL
from training.routing.versions import Versions

log = logging.getLogger(__name__)

MOST = 64
"""scopes whose own versions are held: those that moved last, so that one process's memory has an end"""
_ALWAYS = frozenset({EVERYONE, POOL})


class ServingModels:
    """Reads each version once. Belongs to one thread; `refresh` first.

    Of more than `MOST` scopes those that have not moved for longest go by everyone's version, until they move again.
    """

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._names: dict[str, str] = {}
        self._models: dict[str, RouterModel | None] = {}

    def refresh(self) -> None:
        """Look which versions serve. Raises DatabaseError."""
        serving = self._versions.serving()
        own = [scope for scope in serving if scope not in _ALWAYS]
        self._names = {scope: serving[scope] for scope in (*_ALWAYS & serving.keys(), *own[:MOST])}
        wanted = set(self._names.values())
        self._models = {name: self._models.get(name) or self._load(name) for name in wanted}

    def scopes(self) -> dict[str, RouterModel]:
        """The models, of each scope that has one of its own."""
        return {scope: model for scope, name in self._names.items() if (model := self._models[name]) is not None}

    def of(self, scope: str) -> RouterModel | None:
        """What decides for the scope: its own version, else everyone's, else the rules, which are None."""
        for each in (scope, EVERYONE):
            if (name := self._names.get(each)) and (model := self._models[name]) is not None:
                return model
        return None

    def _load(self, name: str) -> RouterModel | None:
        try:
            return self._versions.load(name)
        except RouterModelInvalid as error:
            log.warning("router version %s does not serve: %s", name, error)
            return None

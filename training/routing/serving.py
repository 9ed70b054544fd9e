"""Which models serve now, by scope, kept in memory while they do."""

from __future__ import annotations

import logging

from router import EVERYONE
from router.learned import RouterModel, RouterModelInvalid
from training.routing.versions import Versions

log = logging.getLogger(__name__)


class ServingModels:
    """Reads each version once. Belongs to one thread; `refresh` first."""

    def __init__(self, versions: Versions) -> None:
        self._versions = versions
        self._names: dict[str, str] = {}
        self._models: dict[str, RouterModel | None] = {}

    def refresh(self) -> None:
        """Look which versions serve. Raises DatabaseError."""
        self._names = self._versions.serving()
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

"""All that has been learned for decisions, at one moment: router versions and evidence, by whose they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from router.evidence import EVERYONE, Evidence
from router.policy import Router


@dataclass(frozen=True, slots=True)
class Learnt:
    """Immutable. A scope is an owner (an API key's name), or `EVERYONE` for those who have nothing of their own.

    `revision` counts the changes of what is stored.
    """

    revision: int = -1
    routers: Mapping[str, Router] = field(default_factory=lambda: MappingProxyType({}))
    evidence: Mapping[str, Evidence] = field(default_factory=lambda: MappingProxyType({}))

    def router_of(self, owner: str) -> Router | None:
        """The version that decides for `owner`; None where none has been fitted or installed."""
        return self.routers.get(owner) or self.routers.get(EVERYONE)


NOTHING_LEARNT = Learnt()

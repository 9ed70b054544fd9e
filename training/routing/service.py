"""What was learned, for the gateway: fits `serving.services.RouterLearning`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import sqlalchemy as sa

from adapters_registry.database import Database
from configs.agents import AgentPreset
from configs.routing import RoutingSettings
from router import EVERYONE, RULES, Evidence, Learnt, Router, Tally
from router.evidence import BANDS, NO_CASES
from training.routing.predicting import version_of
from training.routing.scopes import readers_of
from training.routing.serving import ServingModels
from training.routing.tables import EvidenceRow, ScopeRow, StateRow
from training.routing.versions import Versions

_Tallies = dict[tuple[str, str], list[Tally]]


class LearntSource:
    """Reads it from the database and `home`. Called by one thread at a time. Methods raise DatabaseError."""

    def __init__(
        self, database: Database, home: Path, presets: Mapping[str, AgentPreset], routing: RoutingSettings
    ) -> None:
        self._database = database
        self._presets = presets
        self._routing = routing
        self._models = ServingModels(Versions(database, home))
        self._routers: dict[str, Router] = {}

    def revision(self) -> int:
        """Count of the changes."""
        return int(self._database.scalar(sa.select(StateRow.revision)))

    def read(self) -> Learnt:
        """All of it. What changes meanwhile makes another revision, which is read next."""
        revision = self.revision()
        routers = self._read_routers()
        return Learnt(revision, routers, self._read_evidence(routers))

    def _read_routers(self) -> dict[str, Router]:
        """The routers by who sees them; what is installed for everyone is seen whatever is learned."""
        self._models.refresh()
        models = self._models.scopes()
        seen = {reader: model for scope, model in models.items() if (reader := self._reader(scope))}
        if EVERYONE in models:
            seen.setdefault(EVERYONE, models[EVERYONE])
        known = self._routers
        self._routers = {
            model.version: known.get(model.version) or Router.from_model(model, self._presets)
            for model in seen.values()
        }
        return {reader: self._routers[model.version] for reader, model in seen.items()}

    def _read_evidence(self, routers: Mapping[str, Router]) -> dict[str, Evidence]:
        """The evidence by who sees it: their own and everyone's, each where the version that decides predicted it.

        After a version has moved that is nothing until the worker has predicted its cases again. Who has a router of
        their own has evidence of their own, if only of no case: everyone's was counted against another version.
        """
        scopes = self._read_tallies()
        found = {}
        for reader in {reader for reader, _ in scopes} | set(routers):
            router = routers.get(reader) or routers.get(EVERYONE)
            version = router.version if router else RULES
            own, common = (scopes.get((each, version), {}) for each in (reader, EVERYONE))
            tallies = own if reader == EVERYONE else _merged(own, common)
            found[reader] = Evidence(tallies, self._routing.evidence_weight)
        return found

    def _read_tallies(self) -> dict[tuple[str, str], _Tallies]:
        """What was counted, by who sees it and the version that predicted."""
        query = sa.select(
            EvidenceRow.scope,
            ScopeRow.basis,
            EvidenceRow.agent,
            EvidenceRow.candidate,
            EvidenceRow.band,
            EvidenceRow.cases,
            EvidenceRow.reward,
            EvidenceRow.expected,
        ).join(ScopeRow, ScopeRow.scope == EvidenceRow.scope)
        scopes: dict[tuple[str, str], _Tallies] = defaultdict(lambda: defaultdict(lambda: [NO_CASES] * BANDS))
        with self._database.read() as session:
            for scope, basis, agent, candidate, band, cases, reward, expected in session.execute(query):
                if (reader := self._reader(scope)) is not None and band < BANDS:
                    scopes[reader, version_of(basis)][agent, candidate][band] = Tally(cases, reward, expected)
        return scopes

    def _reader(self, scope: str) -> str | None:
        return readers_of(scope, self._routing.learning)


def _merged(own: _Tallies, common: _Tallies) -> _Tallies:
    """An owner's cases, and those that all may see."""
    merged = {key: list(tallies) for key, tallies in common.items()}
    for key, tallies in own.items():
        others = merged.get(key, [NO_CASES] * BANDS)
        merged[key] = [
            Tally(mine.cases + other.cases, mine.reward + other.reward, mine.expected + other.expected)
            for mine, other in zip(tallies, others, strict=True)
        ]
    return merged

"""CaseBanks with rewarded cases, and a keeper that counts them; `any_database` on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from adapters_registry import Database
from configs.agents import load_presets
from configs.routing import RoutingSettings
from router import Learnt
from tests.adapters_registry.conftest import any_database, database, database_url, migrated, sqlite_url
from training.casebank import Case, CaseBank
from training.routing import LearntSource, RouterKeeper, Versions

__all__ = ["any_database", "database", "database_url", "migrated", "sqlite_url"]

PRESETS = load_presets()
BASES = ("tiny", "large")
BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
LEGAL = "legal@aaaaaa111111"


@dataclass
class Learning:
    """The learning half on one database, and what a gateway would read of it."""

    database: Database
    home: Path
    routing: RoutingSettings

    @property
    def bank(self) -> CaseBank:
        return CaseBank(self.database)

    @property
    def versions(self) -> Versions:
        return Versions(self.database, self.home)

    def keeper(self, bases: Sequence[str] = BASES) -> RouterKeeper:
        return RouterKeeper(self.database, self.home, PRESETS, tuple(bases), self.routing)

    def learn(self, bases: Sequence[str] = BASES) -> Learnt:
        """Count what there is, and read it as a gateway does."""
        self.keeper(bases).step()
        return self.read()

    def read(self) -> Learnt:
        return LearntSource(self.database, self.home, PRESETS, self.routing).read()

    def serve(self, text: str, reward: float | None, **more: Any) -> str:
        """A served case; by default of the base `tiny`, for no agent, of `ann`. Its id."""
        fields = {"agent": None, "base": "tiny", "adapter": None, "owner": "ann", "reason": "out_of_scope"} | more
        case = Case(
            messages=[{"role": "user", "content": text}],
            response={"role": "assistant", "content": "fine"},
            source="served",
            **fields,
        )
        added = self.bank.add([case])
        if reward is not None:
            self.bank.feedback(added.ids[0], reward)
        return added.ids[0]

    def serve_many(self, cases: Sequence[tuple[str, float, dict[str, Any]]]) -> None:
        """Served and rewarded cases, a minute apart, written at once."""
        self.bank.add(
            Case(
                messages=[{"role": "user", "content": text}],
                response={"role": "assistant", "content": "fine"},
                source="served",
                reward=reward,
                created_at=BEGAN + timedelta(minutes=number),
                rewarded_at=BEGAN + timedelta(minutes=number),
                **{"agent": None, "base": "tiny", "owner": "ann", "reason": "out_of_scope", **more},
            )
            for number, (text, reward, more) in enumerate(cases)
        )


MakeLearning = Callable[..., Learning]


@pytest.fixture
def learning(database: Database, tmp_path: Path) -> MakeLearning:
    """Of these routing settings, without refits unless they ask for them."""
    return lambda **settings: _make(database, tmp_path, settings)


@pytest.fixture
def any_learning(any_database: Database, tmp_path: Path) -> MakeLearning:
    """On SQLite and on PostgreSQL: for what depends on the database."""
    return lambda **settings: _make(any_database, tmp_path, settings)


def _make(database: Database, tmp_path: Path, settings: dict[str, Any]) -> Learning:
    return Learning(database, tmp_path / "home", RoutingSettings(**{"refit_s": 0, **settings}))

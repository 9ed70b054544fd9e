"""CaseBanks in databases of their own; `any_bank` on SQLite and on PostgreSQL."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from adapters_registry import Database, open_database
from bench.environment import ROOT
from tests.adapters_registry.conftest import any_database, database, database_url, migrated, sqlite_url
from training.casebank import Case, CaseBank

__all__ = ["any_database", "database", "database_url", "migrated", "sqlite_url"]


@pytest.fixture
def any_bank(any_database: Database) -> CaseBank:
    return CaseBank(any_database)


@pytest.fixture
def bank(database: Database) -> CaseBank:
    return CaseBank(database)


@pytest.fixture
def another(any_database: Database) -> Iterator[CaseBank]:
    """A second process's view of the same database, as far as connections go."""
    database = open_database(any_database.engine.url.render_as_string(hide_password=False))
    yield CaseBank(database)
    database.close()


@pytest.fixture
def data() -> Callable[[str], Path]:
    """A file of the shared public data, which is not part of the repository."""

    def find(name: str) -> Path:
        folder = Path(os.environ.get("LORADOCK_TEST_DATA") or ROOT.parent / "shared" / "data")
        if not (folder / name).is_file():
            pytest.skip(f"{name} is not in {folder} (LORADOCK_TEST_DATA)")
        return folder / name

    return find


def case(text: str, answer: str | None = "fine", agent: str | None = "support", **more: Any) -> Case:
    """A case of one question and its answer."""
    response = None if answer is None else {"role": "assistant", "content": answer}
    return Case(messages=[{"role": "user", "content": text}], response=response, agent=agent, **more)

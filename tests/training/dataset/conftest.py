"""CaseBanks with cases that a test says."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters_registry import Database
from tests.adapters_registry.conftest import any_database, database, database_url, migrated, sqlite_url
from training.casebank import CaseBank

__all__ = ["any_database", "database", "database_url", "migrated", "sqlite_url"]


@pytest.fixture
def any_bank(any_database: Database) -> CaseBank:
    """On SQLite and on PostgreSQL: for what depends on the database."""
    return CaseBank(any_database)


@pytest.fixture
def bank(database: Database) -> CaseBank:
    return CaseBank(database)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"

"""Queues on SQLite and on PostgreSQL, workers' claims on them, and a pipeline whose parts a test may spoil."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from adapters_registry import Database
from tests.adapters_registry.conftest import any_database, database, database_url, migrated, sqlite_url
from training.jobs import JobRequest, JobStore, Priority
from training.jobs.claims import Claims

__all__ = ["any_database", "database", "database_url", "migrated", "sqlite_url"]

Wish = Callable[..., JobRequest]


def wish(agent: str = "legal", priority: Priority = Priority.NORMAL, **fields: object) -> JobRequest:
    """A request for the agent's cases."""
    return JobRequest(agent, f"casebank:{agent}", priority, **fields)  # type: ignore[arg-type]


@pytest.fixture
def any_store(any_database: Database) -> JobStore:
    """On SQLite and on PostgreSQL: for what depends on the database."""
    return JobStore(any_database)


@pytest.fixture
def store(database: Database) -> JobStore:
    return JobStore(database)


@pytest.fixture
def claims(store: JobStore) -> Claims:
    return Claims(store, lease_s=30)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir(exist_ok=True)
    return folder

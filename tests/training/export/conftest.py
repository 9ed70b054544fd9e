from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters_registry import AdapterRegistry, BaseModelSpec, open_database
from configs import embedded

SPEC = BaseModelSpec.from_folder(embedded.BASE, embedded.BASE_NAME, per_module_scaling=True)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[AdapterRegistry]:
    """The demo adapters, registered."""
    database = open_database(f"sqlite:///{tmp_path / 'loradock.db'}")
    registry = AdapterRegistry(database, tmp_path / "home", bases={embedded.BASE_NAME: SPEC})
    registry.register("support-agent", embedded.ADAPTERS / "support-agent", agent="support")
    yield registry
    database.close()

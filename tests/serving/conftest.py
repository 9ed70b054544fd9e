"""Homes with adapters in them, prepared once and copied for each test."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters_registry import AdapterRegistry, BaseModelSpec, open_database
from bench import mock_upstream
from tests.adapters_registry.build import write_adapter
from tests.serving.gateway.scripted import MODEL

BASES = (mock_upstream.BASE, MODEL)
ADAPTERS = ("legal", "support", "extra")


@pytest.fixture(scope="session")
def prepared_homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A home for each base, with the same three adapters; agent `legal` has `legal`, and so on."""
    homes = {}
    for base in BASES:
        folder = tmp_path_factory.mktemp(base)
        homes[base] = folder / "home"
        homes[base].mkdir()
        spec = BaseModelSpec(base, (), max_lora_rank=64)
        database = open_database(f"sqlite:///{homes[base] / 'loradock.db'}")
        registry = AdapterRegistry(database, homes[base], bases={base: spec})
        for seed, name in enumerate(ADAPTERS):
            source = write_adapter(folder / name, seed, base_model_name_or_path=base)
            registry.register(name, str(source))
        database.close()
    return homes


@pytest.fixture
def home(tmp_path: Path, prepared_homes: dict[str, Path]) -> Callable[[str], Path]:
    """A copy of the prepared home of a base."""
    return lambda base: shutil.copytree(prepared_homes[base], tmp_path / "home", dirs_exist_ok=True)

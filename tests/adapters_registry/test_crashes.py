from __future__ import annotations

import random
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adapters_registry import AdapterRegistry, AdapterVersion
from tests.adapters_registry.build import write_adapter
from tests.adapters_registry.processes import finish, start
from tests.adapters_registry.victim import register


@pytest.fixture
def spawn(database_url: str, any_registry: AdapterRegistry, tmp_path: Path) -> Any:
    """`spawn(source, deadly_step)`: a process that registers."""
    return partial(start, register, database_url, tmp_path)


def stored(home: Path) -> set[str]:
    return {folder.name for folder in (home / "adapters").glob("*/*")}


def check_whole(registry: AdapterRegistry, home: Path, before: AdapterVersion) -> int:
    """After a restart: every recorded version is complete, nothing else is on disk. Returns how many there are."""
    registry.recover()
    versions = registry.list_versions()
    assert before.digest in {version.digest for version in versions}
    assert all(registry.verify(version) for version in versions)
    assert stored(home) == {version.digest for version in versions}
    assert list((home / "staging").iterdir()) == []
    assert registry.snapshot().champion("legal") == before
    return len(versions)


@pytest.mark.parametrize("step", ["fetching", "checking", "staged", "published", "recorded", "committed"])
def test_killed_at_a_step(step: str, spawn: Any, any_registry: AdapterRegistry, served: str, tmp_path: Path) -> None:
    before = any_registry.register("legal", write_adapter(tmp_path / "old"))
    write_adapter(tmp_path / "new", 1)
    assert finish(*spawn(f"{served}/new", step)) == -signal.SIGKILL
    assert check_whole(any_registry, tmp_path / "home", before) == (2 if step == "committed" else 1)
    again = any_registry.register("legal", tmp_path / "new")
    assert any_registry.verify(again)
    assert len(any_registry.list_versions()) == 2


def test_killed_at_any_time(spawn: Any, any_registry: AdapterRegistry, tmp_path: Path) -> None:
    before = any_registry.register("legal", write_adapter(tmp_path / "old"))
    dice = random.Random(7)
    for round_number in range(6):
        source = write_adapter(tmp_path / f"new-{round_number}", round_number + 1)
        process, pipe = spawn(str(source))
        pipe.recv()
        time.sleep(dice.uniform(0.0, 0.12))
        process.kill()
        finish(process, pipe)
        assert check_whole(any_registry, tmp_path / "home", before) <= round_number + 2

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from adapters_registry import AdapterRegistry, AdapterVersion, LifecycleError, State
from tests.adapters_registry.build import write_adapter
from tests.adapters_registry.processes import finish, start
from tests.adapters_registry.victim import register


def at_once(count: int, work: Callable[[int], object]) -> list[object]:
    """Run `work(0..count)` in threads that start together; errors are raised here."""
    barrier = threading.Barrier(count)

    def started(index: int) -> object:
        barrier.wait()
        return work(index)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(started, range(count)))


def check_consistent(registry: AdapterRegistry, agent: str = "legal") -> None:
    """One champion, which the alias names, whatever happened before."""
    snapshot = registry.snapshot()
    champions = [v.engine_name for v in snapshot.versions.values() if v.state is State.CHAMPION and v.agent == agent]
    assert champions == [snapshot.agents[agent].champion]
    assert all(registry.verify(version) for version in snapshot.versions.values())


def test_the_same_content_from_many_threads(any_registry: AdapterRegistry, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "adapter")
    found = at_once(6, lambda _: any_registry.register("legal", source))
    assert len(set(found)) == 1
    assert [entry.action for entry in any_registry.audit()].count("register") == 1
    check_consistent(any_registry)


def test_different_contents_of_one_name(any_registry: AdapterRegistry, tmp_path: Path) -> None:
    sources = [write_adapter(tmp_path / f"adapter-{seed}", seed) for seed in range(6)]
    at_once(6, lambda index: any_registry.register("legal", sources[index]))
    assert len(any_registry.list_versions("legal")) == 6
    assert len([entry for entry in any_registry.audit() if entry.action == "promote"]) == 1
    check_consistent(any_registry)


def test_a_name_wanted_for_two_agents_goes_to_one(any_registry: AdapterRegistry, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "adapter")

    def register(index: int) -> AdapterVersion | LifecycleError:
        try:
            return any_registry.register("legal", source, agent=f"agent-{index}")
        except LifecycleError as error:
            return error

    found = at_once(4, register)
    assert sum(isinstance(result, AdapterVersion) for result in found) == 1
    assert {result.code for result in found if isinstance(result, LifecycleError)} == {"name_taken"}
    assert len(any_registry.list_versions()) == 1


def test_promotions_and_rollbacks_race(any_registry: AdapterRegistry, tmp_path: Path) -> None:
    versions = [any_registry.register("legal", write_adapter(tmp_path / f"{seed}", seed)) for seed in range(4)]

    def work(index: int) -> None:
        for turn in range(6):
            any_registry.promote("legal", versions[(index + turn) % 4].version, actor=f"{index}")
            if turn % 3 == 2:
                any_registry.rollback("legal", actor=f"{index}")
            check = any_registry.snapshot()
            assert check.agents["legal"].champion in check.versions

    at_once(4, work)
    check_consistent(any_registry)
    revision = any_registry.snapshot().revision
    changes = [entry.action for entry in any_registry.audit(1000)]
    # registering the first version wrote two entries in one change: register and promote
    assert revision == len(changes) - 1


def test_sweeping_beside_registrations_takes_nothing_live(any_registry: AdapterRegistry, tmp_path: Path) -> None:
    sources = [write_adapter(tmp_path / f"adapter-{seed}", seed) for seed in range(12)]

    def work(index: int) -> None:
        for turn in range(4):
            if index == 3:
                any_registry.recover()
                any_registry.collect_garbage(0)
            else:
                version = any_registry.register(f"name-{index}", sources[4 * index + turn])
                assert any_registry.verify(version)
                if turn % 2:
                    any_registry.retire(version.name, version.version)

    at_once(4, work)
    assert len(any_registry.list_versions()) == 6
    assert all(any_registry.verify(version) for version in any_registry.list_versions())


def test_processes_share_one_registry(any_registry: AdapterRegistry, database_url: str, tmp_path: Path) -> None:
    sources = [write_adapter(tmp_path / f"adapter-{seed}", seed) for seed in (0, 0, 1, 2)]
    started = [start(register, database_url, tmp_path, str(source)) for source in sources]
    assert [finish(*each) for each in started] == [0, 0, 0, 0]
    assert len(any_registry.list_versions("legal")) == 3
    check_consistent(any_registry)

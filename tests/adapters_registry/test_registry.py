from __future__ import annotations

import json
import shutil
import time
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from adapters_registry import AdapterInvalid, AdapterNotFound, AdapterRegistry, SourceError
from tests.adapters_registry.build import write_adapter


def register(registry: AdapterRegistry, tmp_path: Path, seed: int = 0, name: str = "legal"):  # type: ignore[no-untyped-def]
    return registry.register(name, write_adapter(tmp_path / f"seed-{seed}", seed))


def test_references(registry: AdapterRegistry, tmp_path: Path) -> None:
    first, second = register(registry, tmp_path, 0), register(registry, tmp_path, 1)
    for ref in ("legal", first.engine_name, f"legal@{first.digest}", f"legal@{first.digest[:6].upper()}"):
        assert registry.resolve(ref) == first
    assert registry.resolve(f"legal@{second.digest[:7]}") == second
    assert registry.resolve("legal@champion") == first
    for ref in ("legal@", "legal@challenger", "legal@12345", "legal@zzzzzz", "legal@ffffffffffff", "", "@", "legall"):
        with pytest.raises(AdapterNotFound):
            registry.resolve(ref)


def test_nearest_names(registry: AdapterRegistry, tmp_path: Path) -> None:
    for name in ("legal-agent", "support-agent"):
        register(registry, tmp_path, 0, name)
    assert registry.nearest("legal_agent")[0] == "legal-agent"
    assert registry.nearest("zzz") == []
    with pytest.raises(AdapterNotFound, match="did you mean legal-agent"):
        registry.get("legal-agnt")


def test_snapshots_are_shared_until_something_changes(registry: AdapterRegistry, tmp_path: Path) -> None:
    version = register(registry, tmp_path)
    before = registry.snapshot()
    assert registry.snapshot() is before
    registry.pin("legal")
    assert registry.snapshot(max_age_s=60).versions[version.engine_name].pinned
    assert not before.versions[version.engine_name].pinned


def test_changes_of_another_process_show(registry: AdapterRegistry, tmp_path: Path) -> None:
    other = AdapterRegistry(registry._database, tmp_path / "home", bases={})
    register(registry, tmp_path)
    assert "legal" in other.snapshot().newest
    registry.retire("legal")
    assert "legal" in other.snapshot(max_age_s=60).newest
    assert "legal" not in other.snapshot().newest


def test_a_snapshot_within_its_age_costs_nothing(registry: AdapterRegistry, tmp_path: Path) -> None:
    register(registry, tmp_path)
    registry.snapshot()
    began = time.perf_counter()
    for _ in range(1000):
        registry.snapshot(max_age_s=60)
    assert (time.perf_counter() - began) / 1000 < 50e-6


def test_export_is_a_peft_folder(registry: AdapterRegistry, tmp_path: Path) -> None:
    version = register(registry, tmp_path)
    target = registry.export("legal@champion", tmp_path / "out" / "legal")
    config = json.loads((target / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "acme/Tiny-Base"
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert len(load_file(target / "adapter_model.safetensors")) == 8
    assert registry.register("legal", target) == version
    with pytest.raises(SourceError) as caught:
        registry.export("legal", target)
    assert caught.value.code == "folder_not_empty"


def test_verify_sees_damage_and_registering_again_mends_it(registry: AdapterRegistry, tmp_path: Path) -> None:
    version = register(registry, tmp_path)
    assert registry.verify(version)
    weights = version.path / "adapter_model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    assert not registry.verify(version)
    assert register(registry, tmp_path) == version
    assert registry.verify(version)
    shutil.rmtree(version.path)
    assert not registry.verify(version)
    assert register(registry, tmp_path) == version
    assert registry.verify(version)


def test_garbage_waits_for_its_grace(registry: AdapterRegistry, tmp_path: Path) -> None:
    old, new = register(registry, tmp_path, 0), register(registry, tmp_path, 1)
    registry.retire("legal", old.version)
    assert registry.collect_garbage(3600) == ()
    assert [version.digest for version in registry.collect_garbage(0)] == [old.digest]
    assert (old.path.exists(), new.path.exists()) == (False, True)
    assert registry.collect_garbage(0) == ()
    assert registry.verify(register(registry, tmp_path, 0))


def test_a_failed_registration_leaves_nothing(registry: AdapterRegistry, tmp_path: Path) -> None:
    for step in ("checking", "staged", "published", "recorded"):

        def fail(at: str, _done: int, _total: int | None, *, wanted: str = step) -> None:
            if at == wanted:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            registry.register("legal", write_adapter(tmp_path / "adapter"), progress=fail)
        left = [path for path in (tmp_path / "home").rglob("*") if path.is_file()]
        assert [path.name for path in left if path.name != "publish.lock"] == []
        assert registry.snapshot().revision == 0


def test_recover_sweeps_leftovers_and_keeps_the_rest(registry: AdapterRegistry, tmp_path: Path) -> None:
    version = register(registry, tmp_path)
    home = tmp_path / "home"
    orphan = shutil.copytree(version.path, home / "adapters" / "other" / ("0" * 64))
    (home / "staging" / "dead").mkdir()
    (home / "staging" / "dead" / "file").write_text("x")
    (home / "adapters" / "empty").mkdir()
    seen = []

    def while_registering(step: str, _done: int, _total: int | None) -> None:
        if step == "staged":
            seen.append(registry.recover())

    second = registry.register("legal", write_adapter(tmp_path / "b", 2), progress=while_registering)
    assert seen == [2]
    assert not orphan.exists()
    assert sorted(path.name for path in (home / "adapters").iterdir()) == ["legal"]
    assert list((home / "staging").iterdir()) == []
    assert registry.verify(version)
    assert registry.verify(second)
    assert registry.recover() == 0


def test_listing_an_unknown_name(registry: AdapterRegistry) -> None:
    with pytest.raises(AdapterNotFound):
        registry.list_versions("nobody")
    assert registry.list_versions() == ()


def test_bases_may_be_told_anew(registry: AdapterRegistry, base: object, tmp_path: Path) -> None:
    bases: dict[str, object] = {}
    late = AdapterRegistry(registry._database, tmp_path / "home", bases=lambda: bases)  # type: ignore[arg-type,return-value]
    with pytest.raises(AdapterInvalid, match="no engine here"):
        register(late, tmp_path)
    bases["tiny-base"] = base
    assert register(late, tmp_path).base == "tiny-base"

from __future__ import annotations

import subprocess
import sys

import pytest

import router
from adapters_registry import open_database
from configs import Settings, SettingsError
from tests.router.snapshots import LEGAL, SECURITY, snapshot


def test_the_same_decision_comes_from_python():
    decision = router.route_with_adapter("Where is my card?", "legal", snapshot=snapshot())
    assert decision.adapter is LEGAL
    assert decision.to_dict()["adapter"] == LEGAL.engine_name


def test_a_task_may_carry_the_agent_or_be_given_one():
    task = router.Task.from_messages("Is there an SQL injection?")
    assert router.route_with_adapter(task, snapshot=snapshot()).adapter is SECURITY
    assert router.route_with_adapter(task, "legal-agent", snapshot=snapshot()).adapter is LEGAL


def test_the_default_snapshot_is_what_the_settings_say(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORADOCK_HOME", str(tmp_path / "home"))
    decision = router.route_with_adapter("Review the contract clause", "legal-agent")
    assert (decision.agent, decision.adapter, decision.base) == ("legal", None, "loradock-tiny")
    assert not (tmp_path / "home").exists()


def test_an_existing_database_is_read(tmp_path):
    settings = Settings(
        home=tmp_path,
        engines=(
            {"name": "small", "model": "org/small"},
            {"name": "big", "kind": "openai", "model": "large", "url": "https://example.test/v1"},
        ),
    )
    open_database(settings.database).close()
    now = router.local_snapshot(settings)
    assert [(tier.base_name, tier.slots) for tier in now.tiers] == [("small", 1), ("large", 0)]
    assert not now.registry.versions


def test_wrong_settings_are_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORADOCK_PORT", "many")
    with pytest.raises(SettingsError, match="port"):
        router.local_snapshot()


def test_importing_the_router_loads_no_machine_learning():
    code = "import router, sys; print({'torch', 'transformers', 'sklearn', 'vllm'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "set()"

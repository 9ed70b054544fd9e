"""`loradock router versions`, `promote`, `rollback`: what is installed decides, for whom it is meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapters_registry import open_database
from configs.agents import load_presets
from configs.routing import RoutingSettings
from router import EVERYONE
from tests.serving.cli.conftest import Cli
from tests.training.routing.test_versions import MODELS
from training.routing import LearntSource


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What `router fit` writes."""
    MODELS[0].save(tmp_path / "fitted")
    return tmp_path / "fitted"


def deciding(home: Path) -> dict[str, str]:
    """The versions that a gateway would read, by who is served by them."""
    database = open_database(f"sqlite:///{home / 'loradock.db'}")
    learnt = LearntSource(database, home, load_presets(), RoutingSettings()).read()
    database.close()
    return {reader: router.version for reader, router in learnt.routers.items()}


def test_a_fitted_folder_is_installed_for_everyone_and_taken_back(cli: Cli, tmp_path: Path, folder: Path) -> None:
    version = MODELS[0].version
    assert cli("router", "promote", folder, "--json").json == {"version": version, "for": "everyone"}
    assert deciding(tmp_path / "home") == {EVERYONE: version}
    listed = cli("router", "versions", "--json").json["versions"]
    assert [(each["version"], each["for"], each["serves"]) for each in listed] == [(version, "everyone", True)]
    assert version in cli("router", "versions").out
    assert cli("router", "rollback", "--json").json == {"version": None, "for": "everyone"}
    assert deciding(tmp_path / "home") == {}
    again = cli("router", "promote", version)
    assert (again.code, again.err) == (0, "")
    assert deciding(tmp_path / "home") == {EVERYONE: version}


def test_a_key_may_have_a_version_of_its_own(cli: Cli, tmp_path: Path, folder: Path) -> None:
    assert cli("router", "promote", folder, "--key", "ann", "--json").json["for"] == "ann"
    assert deciding(tmp_path / "home") == {"ann": MODELS[0].version}
    assert cli("router", "versions", "--key", "bob", "--json").json == {"versions": []}


def test_refusals_are_one_line(cli: Cli, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "router.json").write_text("{}")
    for arguments, code in (
        (["promote", "0" * 12], 1),
        (["promote", folder], 2),
        (["rollback"], 1),
    ):
        refused = cli("router", *arguments)
        assert (refused.code, refused.out, refused.err.count("\n")) == (code, "", 1), refused
    monkeypatch.setenv("LORADOCK_ROUTING__LEARNING", "shared")
    assert cli("router", "rollback", "--key", "ann").code == 2


def test_no_version_is_told(cli: Cli) -> None:
    assert "the rules decide" in cli("router", "versions").out

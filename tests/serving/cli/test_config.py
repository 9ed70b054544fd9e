from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from configs.settings import Settings, load_settings, setting_names
from serving.cli.config import template
from tests.serving.cli.conftest import Cli


def test_show_tells_every_value_and_its_origin(cli: Cli, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (alone / "loradock.toml").write_text("workers = 2\n")
    monkeypatch.setenv("LORADOCK_PORT", "9001")
    shown = cli("config", "show", "--json").json
    assert set(shown) == set(setting_names())
    assert shown["workers"] == {"value": 2, "origin": "loradock.toml"}
    assert shown["port"] == {"value": 9001, "origin": "env LORADOCK_PORT"}
    assert shown["host"]["origin"] == "default"
    text = cli("config", "show").out
    assert re.search(r"^port +9001 +env LORADOCK_PORT *$", text, re.MULTILINE)


def test_show_hides_the_password_of_the_database(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORADOCK_DATABASE_URL", "postgresql+psycopg://me:s3cr:et@db/loradock")
    for arguments in (["config", "show"], ["config", "show", "--json"]):
        result = cli(*arguments)
        assert "s3cr" not in result.out
        assert "postgresql+psycopg://me:***@db/loradock" in result.out


def test_the_key_of_the_client_is_no_setting(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORADOCK_API_KEY", "ld-x")
    result = cli("config", "show", "--json")
    assert result.code == 0
    assert "ld-x" not in result.out


def test_create_writes_a_file_that_changes_nothing_and_never_replaces_one(cli: Cli, alone: Path) -> None:
    assert cli("config", "create").code == 0
    file = alone / "loradock.toml"
    assert load_settings(environ={}, file=file).settings == load_settings(environ={}).settings
    file.write_text("port = 9\n")
    refused = cli("config", "create")
    assert (refused.code, file.read_text()) == (1, "port = 9\n")
    assert "--force" in refused.err
    assert cli("config", "create", "--force").code == 0
    assert file.read_text() == template()


def test_every_line_of_the_template_can_be_uncommented(alone: Path) -> None:
    settings = template().split("#[[engines]]")[0]
    lines = [
        line[1:] for line in settings.splitlines() if re.match(r"#\w+ = ", line) and "not set by default" not in line
    ]
    (alone / "all.toml").write_text("\n".join(lines))
    assert load_settings(environ={}, file=alone / "all.toml").settings == load_settings(environ={}).settings
    assert {line.split(" ")[0] for line in lines} <= set(Settings.model_fields)


def test_validate_tells_each_problem_on_its_line(cli: Cli, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = alone / "bad.toml"
    file.write_text('port = "x"\nprot = 1\n[[engines]]\nname = "a"\nkind = "openai"\n')
    monkeypatch.setenv("LORADOCK_PORT", "not for this command")
    result = cli("config", "validate", file)
    assert result.code == 1
    lines = result.out.splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"{file}: ") for line in lines)
    assert any("unknown setting 'prot'" in line for line in lines)
    assert len(cli("config", "validate", file, "--json").json["problems"]) == 3
    file.write_text("port = = 1")
    assert cli("config", "validate", file).out.count("\n") == 1
    file.write_text("port = 1")
    assert cli("config", "validate", file, "--json").json == {"file": str(file), "valid": True, "problems": []}


def test_a_file_that_is_missing_is_a_broken_argument(cli: Cli) -> None:
    assert cli("config", "validate", "nowhere.toml").code == 2


def test_create_where_nothing_can_be_written(cli: Cli) -> None:
    result = cli("config", "create", "nowhere/at/all.toml", "--json")
    assert result.code == 1
    assert "nowhere/at/all.toml" in json.loads(result.out)["error"]["message"]

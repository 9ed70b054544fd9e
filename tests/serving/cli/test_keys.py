from __future__ import annotations

from pathlib import Path

from serving.auth import KeyRing
from tests.serving.cli.conftest import Cli


def test_a_key_is_printed_once_and_kept_hashed(cli: Cli, tmp_path: Path) -> None:
    added = cli("keys", "add", "ops", "--admin")
    assert added.code == 0
    key = added.out.strip()
    file = tmp_path / "home" / "api_keys.toml"
    assert key not in file.read_text()
    assert KeyRing(file).identify(f"Bearer {key}", "localhost").admin
    listed = cli("keys", "list", "--json").json
    assert listed["keys"] == [{"name": "ops", "admin": True, "record": True, "routing": {}}]
    assert key not in cli("keys", "list").out


def test_json_holds_the_key(cli: Cli, tmp_path: Path) -> None:
    document = cli("keys", "add", "app", "--json").json
    assert (document["name"], document["admin"]) == ("app", False)
    assert KeyRing(tmp_path / "home" / "api_keys.toml").identify(f"Bearer {document['key']}", "localhost").name == "app"


def test_a_keys_requests_can_be_kept_out_of_the_cases(cli: Cli, tmp_path: Path) -> None:
    key = cli("keys", "add", "private", "--no-record", "--json").json["key"]
    ring = KeyRing(tmp_path / "home" / "api_keys.toml")
    assert not ring.identify(f"Bearer {key}", "localhost").record
    cli("keys", "add", "other")
    assert [each["record"] for each in cli("keys", "list", "--json").json["keys"]] == [False, True]


def test_a_key_may_wish_for_its_routes_and_keeps_that_when_others_come_and_go(cli: Cli, tmp_path: Path) -> None:
    key = cli("keys", "add", "thrifty", "--quality", "economy", "--max-cost", "0.002", "--json").json["key"]
    cli("keys", "add", "other")
    cli("keys", "remove", "other")
    wishes = KeyRing(tmp_path / "home" / "api_keys.toml").identify(f"Bearer {key}", "localhost").wishes
    assert (wishes.quality, wishes.max_cost) == ("economy", 0.002)
    assert cli("keys", "list", "--json").json["keys"][0]["routing"] == {"quality": "economy", "max_cost": 0.002}
    for wrong in (["--quality", "cheap"], ["--max-cost", "0"], ["--max-cost", "nan"]):
        refused = cli("keys", "add", "wrong", *wrong)
        assert (refused.code, refused.out) == (2, "")


def test_keys_can_be_revoked_but_not_the_last(cli: Cli) -> None:
    cli("keys", "add", "one", "--admin")
    cli("keys", "add", "two")
    assert cli("keys", "remove", "two").code == 0
    assert [key["name"] for key in cli("keys", "list", "--json").json["keys"]] == ["one"]
    last = cli("keys", "remove", "one")
    assert last.code == 1
    assert "last key" in last.err


def test_refusals_are_one_line(cli: Cli) -> None:
    cli("keys", "add", "one")
    for arguments in (["add", "one"], ["add", "No Spaces"], ["remove", "two"]):
        result = cli("keys", *arguments)
        assert (result.code, result.out, result.err.count("\n")) == (1, "", 1)


def test_no_keys_is_told(cli: Cli) -> None:
    assert "no keys" in cli("keys", "list").out

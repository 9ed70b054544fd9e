"""`loradock adapters export` without a server: formats, the check, and refusals as lines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapters_registry import AdapterRegistry, BaseModelSpec, open_database
from configs import embedded
from tests.serving.cli.conftest import Cli

SPEC = BaseModelSpec.from_folder(embedded.BASE, embedded.BASE_NAME)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with one demo adapter, where the settings of the tests look for it."""
    folder = tmp_path / "home"
    folder.mkdir()
    database = open_database(f"sqlite:///{folder / 'loradock.db'}")
    registry = AdapterRegistry(database, folder, bases={embedded.BASE_NAME: SPEC})
    registry.register("legal-agent", embedded.ADAPTERS / "legal-agent", agent="legal")
    database.close()
    return folder


@pytest.mark.usefixtures("home")
def test_a_merged_model_comes_with_what_it_lost(cli: Cli, tmp_path: Path) -> None:
    result = cli("adapters", "export", "legal-agent", tmp_path / "out", "--format", "merged", "--limit", 16, "--json")
    assert (result.code, result.err) == (0, "")
    assert result.json["name"] == "legal-agent"
    assert result.json["folder"] == str(tmp_path / "out")
    assert result.json["loss"]["passed"]
    assert result.json["loss"]["source"] == "held-out demo cases of legal"
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"


@pytest.mark.usefixtures("home")
def test_an_earlier_export_is_replaced_only_when_asked(cli: Cli, tmp_path: Path) -> None:
    cases = tmp_path / "cases.csv"
    cases.write_text("text,label\n" + "an agreement,other\n" * 4)
    arguments = ("adapters", "export", "legal-agent", tmp_path / "out", "--format", "gguf-f16")
    first = cli(*arguments, "--cases", cases, "--json")
    assert (first.code, first.json["loss"]["cases"]) == (0, 4)
    again = cli(*arguments)
    assert (again.code, again.out) == (1, "")
    assert "--force" in again.err
    assert cli(*arguments, "--force", "--no-check").code == 0


@pytest.mark.usefixtures("home")
@pytest.mark.parametrize(
    ("extra", "code", "told"),
    [
        (("--base", "./none"), 2, "does not exist"),
        (("--cases", "none.csv"), 1, "cannot read"),
        (("--format", "onnx"), 2, "onnx"),
    ],
)
def test_wrong_arguments_are_one_line(cli: Cli, tmp_path: Path, extra: tuple[str, ...], code: int, told: str) -> None:
    result = cli("adapters", "export", "legal-agent", tmp_path / "out", "--format", "merged", *extra)
    assert (result.code, result.out) == (code, "")
    assert told in result.err
    assert not (tmp_path / "out").exists()

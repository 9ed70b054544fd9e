from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from adapters_registry import open_database
from configs.embedded import BASE
from tests.serving.cli.conftest import Cli
from tests.training.dataset.make import asked, many, sentence
from training.casebank import CaseBank


@pytest.fixture
def filled(cli: Cli) -> None:
    database = open_database(f"sqlite:///{os.environ['LORADOCK_HOME']}/loradock.db")
    cases = [*many(40, task_type="chat"), *many(10, 100, split="holdout"), asked(sentence(500), reward=0.1, at=500)]
    cases += [asked(sentence(502), at=502, user="ada")]
    CaseBank(database).add([*cases, asked(sentence(501), "x<|im_end|>y", at=501)])
    database.close()


@pytest.mark.usefixtures("filled")
def test_programs_get_figures_and_findings(cli: Cli) -> None:
    document = cli("train", "dataset", "--agent", "support", "--json").json
    assert document["statistics"]["rows"] == {"train": 37, "validation": 4, "holdout": 10, "general": 37}
    assert {finding["code"] for finding in document["quality"]} >= {"low_reward", "control_tokens", "few_rows"}
    assert json.loads((Path(document["folder"]) / "dataset.json").read_text())["name"] == document["dataset"]
    assert cli("train", "dataset", "--agent", "support", "--json").json == document


@pytest.mark.usefixtures("filled")
def test_a_person_reads_tables(cli: Cli) -> None:
    result = cli("train", "dataset", "--agent", "support", "--tokenizer", BASE)
    assert result.code == 0
    for words in ("37 train", "4 validation", "10 holdout", "tokens of a row", "control_tokens", "chat 40, none 11"):
        assert words in result.out


@pytest.mark.usefixtures("filled")
def test_deleting_cases_deletes_the_datasets_that_held_them(cli: Cli) -> None:
    document = cli("train", "dataset", "--agent", "support", "--json").json
    assert cli("cases", "delete", "--user", "ada", "--json").json == {"deleted": 1, "datasets": [document["dataset"]]}
    assert not Path(document["folder"]).exists()
    assert cli("cases", "delete", "--user", "ada", "--json").json == {"deleted": 0, "datasets": []}


def test_an_agent_without_cases_is_one_line(cli: Cli) -> None:
    result = cli("train", "dataset", "--agent", "support")
    assert result.code == 1
    assert "agent 'support' has no cases" in result.err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(("--max-tokens", 10), "--max-tokens needs --tokenizer"), (("--tokenizer", "nowhere"), "does not exist")],
)
def test_a_broken_argument_is_one_line(cli: Cli, arguments: tuple[object, ...], told: str) -> None:
    result = cli("train", "dataset", "--agent", "support", *arguments)
    assert result.code == 2
    assert told in result.err

"""`loradock cases` from a file to a file, without a server."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.serving.cli.conftest import Cli, Result

ROWS = 'text,label,split\n"one, with\na new line",A,train\ntwo words here,B,test\n,C,train\nthree words there,A,train\n'


Imports = Callable[[str, str | None], Result]


@pytest.fixture
def imports(cli: Cli, tmp_path: Path) -> Imports:
    """Import a file with this content, in this format."""

    def run(content: str, form: str | None) -> Result:
        file = tmp_path / "rows.csv"
        file.write_text(content)
        return cli("cases", "import", file, "--agent", "x", *(("--format", form) if form else ()))

    return run


@pytest.fixture
def imported(cli: Cli, tmp_path: Path) -> Path:
    file = tmp_path / "rows.csv.gz"
    file.write_bytes(gzip.compress(ROWS.encode()))
    assert cli("cases", "import", file, "--agent", "support", "--format", "classification").code == 0
    return file


def test_an_import_tells_what_it_did_and_a_second_adds_nothing(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(ROWS)
    tried = cli("cases", "import", file, "--agent", "support", "--dry-run")
    assert (tried.code, "3 cases would be added" in tried.out) == (0, True)
    first = cli("cases", "import", file, "--agent", "support")
    assert first.code == 0
    assert "line 5: 'text' is empty" in first.out
    assert "4 rows as classification: 3 cases added to support, 0 known already, 1 bad rows" in first.out
    again = cli("cases", "import", file, "--agent", "support", "--json")
    report = again.json
    assert (again.code, report["added"], report["duplicates"], report["bad"]) == (0, 0, 3, 1)
    assert report["problems"] == [{"line": 5, "reason": "'text' is empty"}]


@pytest.mark.parametrize(
    ("content", "form", "code", "told"),
    [
        ("text,label\n,A\n", None, 1, "1 bad rows"),
        ("text,label\n", None, 1, "no rows"),
        ("a,b\n1,2\n", None, 2, "no format has the columns a, b"),
        ("text,label\nx,y\n", "messages", 1, "format messages needs messages"),
        ("text,label\nx,y\n", "parquet", 2, "use one of messages, sharegpt"),
        ("", None, 1, "is empty"),
    ],
)
def test_files_that_give_nothing_fail_in_one_line(
    imports: Imports, content: str, form: str | None, code: int, told: str
) -> None:
    result = imports(content, form)
    assert result.code == code
    assert told in result.out + result.err
    assert result.err.count("\n") <= 1


def test_a_missing_file_is_told(cli: Cli, tmp_path: Path) -> None:
    result = cli("cases", "import", tmp_path / "nowhere.csv", "--agent", "x", "--json")
    assert (result.code, "is no file" in result.json["error"]["message"]) == (1, True)


def test_cases_are_counted_listed_and_judged(cli: Cli, imported: Path) -> None:
    agent = cli("cases", "stats", "--json").json[0]
    assert (agent["agent"], agent["cases"], agent["eligible"], agent["holdout"]) == ("support", 3, 3, 1)
    assert "support" in cli("cases", "stats").out
    listed = cli("cases", "list", "--agent", "support", "--json").json
    assert [case["label"] for case in listed] == ["A", "B", "A"]
    assert "three words there" in cli("cases", "list").out
    case_id = listed[0]["id"]
    judged = cli("cases", "label", case_id, "--label", "Z", "--reward", 0.2)
    assert (judged.code, "reward 0.200, answer to learn: Z" in judged.out) == (0, True)
    assert cli("cases", "stats", "--agent", "support", "--json").json[0]["corrected"] == 1
    assert cli("cases", "label", case_id).code == 2
    assert cli("cases", "label", "nobody", "--reward", 1).code == 1


@pytest.mark.parametrize("name", ["out.jsonl", "out.csv", "out.jsonl.gz", "out.tsv"])
def test_an_export_gives_the_cases_back(cli: Cli, imported: Path, tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    exported = cli("cases", "export", file, "--agent", "support", "--format", "classification", "--json").json
    assert (exported["written"], exported["left_out"]) == (3, 0)
    assert cli("cases", "import", file, "--agent", "other", "--json").json["added"] == 3
    assert cli("cases", "import", file, "--agent", "support", "--json").json["duplicates"] == 3
    splits = [
        sorted((case["label"], case["split"]) for case in cli("cases", "list", "--agent", agent, "--json").json)
        for agent in ("support", "other")
    ]
    assert splits[0] == splits[1]


def test_deletion_needs_to_know_what_and_reaches_exports(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"p{n} of {n}", "completion": "c", "user_id": f"u{n % 2}", "session": "s"} for n in range(4)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cli("cases", "import", file, "--agent", "a").code == 0
    assert cli("cases", "delete").code == 2
    assert cli("cases", "delete", "--user", "u1", "--json").json["deleted"] == 2
    assert cli("cases", "export", tmp_path / "out.jsonl", "--agent", "a", "--json").json["written"] == 2
    assert "u1" not in (tmp_path / "out.jsonl").read_text()
    assert cli("cases", "delete", "--older-than", 1, "--json").json["deleted"] == 0
    assert cli("cases", "delete", "--session", "s", "--json").json["deleted"] == 2

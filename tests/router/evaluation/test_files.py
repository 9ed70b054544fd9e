from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from router.evaluation import UnreadableTable, read_agents, read_routes
from router.learned import RouteRow


def test_plain_and_gzip_tables_with_quoted_newlines(tmp_path: Path) -> None:
    text = 'subject,prompt,weak_correct,strong_correct\nlaw,"May I?\nA. yes",0,1\nart,Who?,0.25,1\n'
    (tmp_path / "a.csv").write_text(text)
    with gzip.open(tmp_path / "a.csv.gz", "wt") as file:
        file.write(text)
    expected = [RouteRow("May I?\nA. yes", 0, 1, "law"), RouteRow("Who?", 0.25, 1, "art")]
    assert read_routes(tmp_path / "a.csv", "subject") == expected
    assert [row.group for row in read_routes(tmp_path / "a.csv.gz")] == [None, None]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,weak_correct\nx,1\n", "lacks the column 'strong_correct'"),
        ("prompt,weak_correct,strong_correct\n", "has no rows"),
        ("prompt,weak_correct,strong_correct\nx,1,maybe\n", "line 2: 'maybe' is no outcome"),
        ("prompt,weak_correct,strong_correct\nx,1,nan\n", "line 2: 'nan' is no outcome"),
        ("prompt,weak_correct,strong_correct\nx,1\n", "line 2: too few columns"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "broken.csv"
    file.write_text(text)
    with pytest.raises(UnreadableTable, match=message) as error:
        read_routes(file)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_no_tables(tmp_path: Path) -> None:
    (tmp_path / "no.csv.gz").write_bytes(b"not gzip at all")
    (tmp_path / "no.csv").write_bytes(b"text,agent\n\xff\xfe,x\n")
    for name in ("no.csv.gz", "no.csv", "missing.csv"):
        with pytest.raises(UnreadableTable, match=name):
            read_agents(tmp_path / name)

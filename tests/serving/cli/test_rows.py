from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from serving.cli.adapter_bench import Row, read_rows
from serving.cli.errors import Misuse

CSV = 'text,label,split\n"one, with\na new line",A ,train\ntwo,B,test\nthree,A,test\n,A,test\n'


@pytest.mark.parametrize("name", ["cases.csv", "cases.csv.gz", "named-otherwise"])
def test_rows_are_read_plain_or_compressed(tmp_path: Path, name: str) -> None:
    data = CSV.encode() if name == "cases.csv" else gzip.compress(CSV.encode())
    (tmp_path / name).write_bytes(data)
    assert read_rows(tmp_path / name, None) == [Row("two", "B"), Row("three", "A")]


def test_without_a_split_all_rows_count(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text('text,label\n"one, with\na new line",A \n')
    assert read_rows(tmp_path / "cases.csv", None) == [Row("one, with\na new line", "A")]


def test_a_limit_draws_the_same_rows_from_all_over_a_sorted_file(tmp_path: Path) -> None:
    (tmp_path / "cases.csv").write_text("text,label\n" + "".join(f"t{i},{i // 10}\n" for i in range(100)))
    drawn = read_rows(tmp_path / "cases.csv", 20)
    assert drawn == read_rows(tmp_path / "cases.csv", 20)
    assert len(set(drawn)) == 20
    assert len({row.label for row in drawn}) > 5


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"text,answer\na,b\n", "no column label"),
        (b"", "no column label and no column text"),
        (b"text,label,split\na,b,train\n", "no rows"),
        (b"text,label\n\xff\xfe,b\n", "UTF-8"),
        (b"\x1f\x8bbroken", "cases.csv"),
    ],
)
def test_data_that_cannot_be_scored_is_refused(tmp_path: Path, data: bytes, told: str) -> None:
    (tmp_path / "cases.csv").write_bytes(data)
    with pytest.raises(Misuse, match=told):
        read_rows(tmp_path / "cases.csv", None)


def test_missing_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match="No such file"):
        read_rows(tmp_path / "nowhere.csv", None)

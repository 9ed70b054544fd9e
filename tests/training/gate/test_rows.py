from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.dataset.general import is_replayed
from training.gate.errors import RowsInvalid
from training.gate.rows import is_classification, known_labels, read_general, read_holdout, read_suite

ENTRY = {"id": "1", "messages": [{"role": "user", "content": "?"}], "completion": "yes", "tools": None, "task_type": ""}


def write(path: Path, *entries: object) -> Path:
    path.write_text("".join(f"{entry if isinstance(entry, str) else json.dumps(entry)}\n" for entry in entries))
    return path


def test_a_holdout_is_read_without_general_replay(tmp_path: Path) -> None:
    general = ENTRY | {"task_type": "general"}
    write(tmp_path / "holdout.jsonl", ENTRY, general)
    write(tmp_path / "train.jsonl", ENTRY | {"completion": "no"}, general | {"completion": "Paris"})
    rows = read_holdout(tmp_path)
    assert [row.target for row in rows] == ["yes"]
    assert known_labels(tmp_path, rows) == {"yes", "no"}


def test_labels_are_recognised_by_name_or_by_repeating(tmp_path: Path) -> None:
    def rows(targets: list[str], kind: str = "") -> list:
        entries = [ENTRY | {"completion": target, "task_type": kind} for target in targets]
        return read_holdout(write(tmp_path / "holdout.jsonl", *entries).parent)

    assert is_classification(rows(["a", "b"] * 10))
    assert is_classification(rows([f"label {number}" for number in range(20)], "classification"))
    assert not is_classification(rows(["a", "b"] * 10, "chat"))
    assert not is_classification(rows([f"answer {number}" for number in range(20)]))
    assert not is_classification(rows(["a long answer that is repeated " * 5] * 20))


def test_general_questions_are_those_that_training_never_sees() -> None:
    rows = read_general()
    assert len(rows) > 50
    assert not any(is_replayed(row.question) for row in rows)
    assert all(row.accept and row.target for row in rows)


def test_a_suite_says_how_each_row_is_judged(tmp_path: Path) -> None:
    suite = write(
        tmp_path / "mine.jsonl",
        {"prompt": "2 + 2?", "answer": "4"},
        {"messages": ENTRY["messages"], "pattern": "^[0-9]+$"},
        "",
        {"prompt": "an object", "json_schema": {"type": "object"}},
    )
    first, second, third = read_suite(suite)
    assert (first.question, first.target) == ("2 + 2?", "4")
    assert second.pattern is not None
    assert third.schema == {"type": "object"}


@pytest.mark.parametrize(
    ("entry", "word"),
    [
        ({"answer": "4"}, "neither 'messages' nor 'prompt'"),
        ({"prompt": "?"}, "exactly one of"),
        ({"prompt": "?", "answer": "4", "pattern": "4"}, "exactly one of"),
        ({"prompt": "?", "pattern": "("}, "no regular expression"),
        ("{", "no JSON"),
        ("[]", "no JSON object"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(tmp_path: Path, entry: object, word: str) -> None:
    with pytest.raises(RowsInvalid, match=r"mine\.jsonl:2: ") as refused:
        read_suite(write(tmp_path / "mine.jsonl", {"prompt": "?", "answer": "4"}, entry))
    assert word in refused.value.message


def test_a_holdout_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RowsInvalid, match=r"holdout\.jsonl"):
        read_holdout(tmp_path)

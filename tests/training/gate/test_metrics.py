from __future__ import annotations

import re

import pytest

from training.gate.endpoint import Reply
from training.gate.metrics import exact_match, field_f1, format_valid, macro_f1, said_by, task_score, token_f1
from training.gate.rows import Row

USER = ({"role": "user", "content": "?"},)
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def reply(text: str = "", *calls: dict, cut_off: bool = False) -> Reply:
    return Reply(text, calls, (), 1, cut_off)


def row(target: str = "", **more) -> Row:
    return Row("1", USER, target, **more)


def test_white_space_does_not_matter_and_case_does() -> None:
    assert exact_match(" Yes,  it\nis ", "Yes, it is")
    assert not exact_match("yes, it is", "Yes, it is")


@pytest.mark.parametrize(
    ("said", "target", "score"),
    [("the cat sat", "the cat sat", 1.0), ("the cat", "the cat sat", 0.8), ("dog", "cat", 0.0), ("", "", 1.0)],
)
def test_f1_of_words(said: str, target: str, score: float) -> None:
    assert token_f1(said, target) == pytest.approx(score)


def test_f1_of_extracted_fields_ignores_order_and_punishes_inventions() -> None:
    target = '{"name": "Ann", "age": 3, "tags": ["a", "b"]}'
    assert field_f1('{"tags": ["b", "a"], "age": 3, "name": "Ann"}', target) == 1.0
    assert field_f1('{"name": "Ann"}', target) == pytest.approx(0.4)
    assert field_f1('{"name": "Ann", "age": 4, "tags": ["a", "b"]}', target) == 0.75
    assert field_f1("Ann is 3", target) == 0.0


def test_macro_f1_agrees_with_scikit_learn() -> None:
    from sklearn.metrics import f1_score

    targets = ["a"] * 10 + ["b"] * 5 + ["c"] * 2
    said = ["a"] * 7 + ["b"] * 3 + ["b"] * 4 + ["nonsense"] + ["c", "a"]
    expected = f1_score(targets, said, labels=["a", "b", "c"], average="macro")
    assert macro_f1(said, targets) == pytest.approx(expected)


def test_each_kind_of_row_has_its_own_score() -> None:
    assert task_score(row("refund"), "refund", classification=True) == 1
    assert task_score(row("refund"), "refund please", classification=True) == 0
    assert task_score(row("a b", task_type="chat"), "a", classification=False) == pytest.approx(2 / 3)
    assert task_score(
        row('{"x": 1}', task_type="extraction"), '{"x": 1, "y": 2}', classification=False
    ) == pytest.approx(2 / 3)
    assert task_score(row("It is Paris.", accept=("Paris",)), "I say paris", classification=False) == 1
    assert task_score(row(pattern=re.compile(r"\b42\b")), "it is 42.", classification=False) == 1
    assert task_score(row(schema={"required": ["x"]}), '{"y": 1}', classification=False) == 0


def test_a_format_is_valid_whether_or_not_the_answer_is_right() -> None:
    labels = frozenset({"yes", "no"})
    assert format_valid(row("yes"), reply("no"), labels)
    assert not format_valid(row("yes"), reply("maybe"), labels)
    assert format_valid(row('{"a": 1}'), reply("[]"), frozenset())
    assert not format_valid(row('{"a": 1}'), reply("{a: 1}"), frozenset())
    assert format_valid(row("words"), reply("any words"), frozenset())
    assert not format_valid(row("words"), reply(" "), frozenset())
    assert not format_valid(row("words"), reply("on and on and", cut_off=True), frozenset())


def test_tool_calls_have_to_fit_the_tools() -> None:
    asked = row('{"name": "weather", "arguments": {"city": "Bonn"}}', tools=(WEATHER,))
    right = {"name": "weather", "arguments": '{"city": "Bonn"}'}
    assert format_valid(asked, reply("", right), frozenset())
    assert task_score(asked, said_by(reply("", right)), classification=False) == 1
    for wrong in (
        {"name": "climate", "arguments": "{}"},
        {"name": "weather", "arguments": "{}"},
        {"name": "weather", "arguments": "city=Bonn"},
    ):
        assert not format_valid(asked, reply("", wrong), frozenset())

from __future__ import annotations

import math
import time

import pytest

from router.learned.structure import NAMES, split_choices, structure

QUESTION = "Which of these is NOT prime?\nA. 2\nB. 9\nC. 11\nD. 13\nAnswer:"


def form(text: str) -> dict[str, float]:
    return dict(zip(NAMES, structure(text), strict=True))


def test_choices_are_the_marked_lines_at_the_end() -> None:
    assert split_choices(QUESTION) == ("Which of these is NOT prime?\n", ["2", "9", "11", "13"])
    assert split_choices("Do it:\n1. wash\n2. dry\nand fold\n3. store") == (
        "Do it:\n",
        ["wash", "dry\nand fold", "store"],
    )
    assert split_choices("Steps:\n1. one\n2. two\nPick:\n(a) x\n(b) y")[1] == ["x", "y"]


@pytest.mark.parametrize("text", ["", "no choices", "A. alone", "B. second\nC. third", "a sentence. A. B. C."])
def test_texts_without_choices(text: str) -> None:
    assert split_choices(text) == (text, [])
    assert len(structure(text)) == len(NAMES)


@pytest.mark.parametrize("text", ["\n", "A. \nB. ", "?!", "\ud800", "日本語", "A. 1\nB. 2\n" * 400, "x" * 4097])
def test_odd_texts_have_finite_forms(text: str) -> None:
    found = structure(text)
    assert len(found) == len(NAMES)
    assert all(math.isfinite(value) for value in found)


@pytest.mark.parametrize("text", ["\nanswer" + " " * 4000 + "x", "\n" * 4000 + "x", "\n" + " " * 4000 + "x"])
def test_blanks_cost_no_quadratic_time(text: str) -> None:
    began = time.thread_time()
    for _ in range(10):
        split_choices(text)
    assert time.thread_time() - began < 0.1


def test_blanks_after_the_prompt_for_an_answer_do_not_matter() -> None:
    assert split_choices(QUESTION + " \n") == split_choices(QUESTION)


def test_what_the_form_says() -> None:
    found = form(QUESTION)
    assert found["choice_numbers"] == 1
    assert found["shouted"] == found["denied"] == found["ends_asking"] == found["begins_asking"] == 1
    assert found["says_which"] == 1
    assert found["choices"] == pytest.approx(math.log(5))
    arranged = form("Statement 1 | x.\nA. True, True\nB. False, False\nC. True, False\nD. False, True\nAnswer:")
    assert arranged["arranged"] == arranged["verdicts"] == arranged["statements"] == 1
    assert found["arranged"] == found["verdicts"] == found["statements"] == 0

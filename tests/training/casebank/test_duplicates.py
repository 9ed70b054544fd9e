from __future__ import annotations

import random
import time

import pytest

from training.casebank.duplicates import (
    NearDuplicates,
    normalise,
    signature,
    signatures,
)

LONG = (
    "Each party shall keep the other's confidential information secret for five years after the end of this agreement, "
    "unless a court of the state of Delaware orders its disclosure."
)


@pytest.mark.parametrize(
    "variant",
    [
        "WHERE IS MY CARD",
        "  Where\tis\n my card ?!",
        "Where is my card…",
        "Where is my c\u200bard?",
        "\uff37here is my card?",
        "Where is my c\u0430rd?",
        "Where\u00a0is my card?",
    ],
    ids=["case", "spaces", "punctuation", "zero width", "full width", "homoglyph", "hard space"],
)
def test_what_carries_no_meaning_makes_no_difference(variant: str) -> None:
    assert normalise(variant) == normalise("Where is my card?")


@pytest.mark.parametrize(("one", "other"), [("2+2", "2-2"), ("a < b", "a > b"), ("?", "!"), ("\u00e9tat", "tat")])
def test_what_carries_meaning_does(one: str, other: str) -> None:
    assert normalise(one) != normalise(other)


def near(one: str, other: str) -> bool:
    index = NearDuplicates()
    index.add("one", signature(one))
    return [key for key, _ in index.query(signature(other))] == ["one"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (LONG, LONG.replace("secret", "private")),
        (LONG, "In short: " + LONG),
        ("I lost my card", "Hello, please: I lost my card. Thank you very much!"),
        ("My card was stolen, what should I do now?", "What should I do now? My card was stolen."),
        ("请问我的银行卡在哪里可以领取", "请问我的银行卡在哪里可以领取呢"),
    ],
    ids=["a word changed", "a prefix", "courtesies", "clauses swapped", "without spaces"],
)
def test_nearly_the_same_is_found(one: str, other: str) -> None:
    assert near(one, other)
    assert near(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How do I change my PIN?", "How do I close my account?"),
        (LONG, "This agreement ends after five years."),
        ("thanks", "hello"),
    ],
)
def test_what_asks_something_else_is_not(one: str, other: str) -> None:
    assert not near(one, other)


def test_the_most_similar_comes_first_with_its_similarity() -> None:
    index = NearDuplicates(threshold=0.5)
    index.add("far", signature(LONG.replace("secret", "private").replace("five", "ten")))
    index.add("same", signature(LONG))
    assert [key for key, _ in index.query(signature(LONG))] == ["same", "far"]
    assert index.query(signature(LONG))[0][1] == 1.0
    assert 0.5 <= index.query(signature(LONG))[1][1] < 1.0


def test_blank_texts_resemble_nothing() -> None:
    index = NearDuplicates()
    index.add("blank", signature(" \n"))
    assert len(index) == 0
    assert index.query(signature("")) == []


def test_a_signature_is_the_same_everywhere() -> None:
    """Stored signatures stay comparable: the first numbers of this one must never change."""
    assert signature("where is my card")[:4].tolist() == [86440308, 26581069, 182869272, 154226738]


def test_ten_thousand_short_texts_take_seconds() -> None:
    draw = random.Random(1)
    vocabulary = [f"word{number}" for number in range(2_000)]
    texts = [" ".join(draw.choices(vocabulary, k=12)) for _ in range(10_000)]
    signature("warm")
    started = time.process_time()
    index = NearDuplicates()
    for number, signed in enumerate(signatures(texts)):
        index.query(signed)
        index.add(str(number), signed)
    assert time.process_time() - started < 10

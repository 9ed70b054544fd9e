"""Nothing of the holdout in training, whatever disguise it comes in."""

from __future__ import annotations

import pytest

from tests.training.dataset.make import asked, many, sentence
from training.casebank import Case
from training.dataset import DatasetConfig, Leakage, check_leakage
from training.dataset.errors import DatasetEmpty
from training.dataset.plan import plan_dataset

QUESTION = "Where is the card that I ordered last week?"
LONG = (
    "My landlord has kept the deposit of two thousand euros although the flat was handed over in order in March, and "
    "he answers no letters. What can I do before the period of limitation ends, and who pays for the lawyer?"
)
LIKE = {
    "the same": (QUESTION, asked(QUESTION)),
    "other case": (QUESTION, asked(QUESTION.upper())),
    "other punctuation": (QUESTION, asked("where is the card, that i ordered - last week...")),
    "other white space": (QUESTION, asked(f"\n {QUESTION.replace(' ', chr(160) + ' ')}\t")),
    "compatibility characters": (
        QUESTION,
        asked(QUESTION.translate({c: c + 0xFEE0 for c in range(65, 123)})),
    ),
    "characters of no width": (QUESTION, asked(QUESTION.replace("r", "r\u200b"))),
    "soft hyphens": (QUESTION, asked(QUESTION.replace("dere", "de\u00adre"))),
    "look-alikes": (QUESTION, asked(QUESTION.translate(str.maketrans("aeo", "\u0430\u0435\u043e")))),
    "accents composed otherwise": ("Où est ma carte bancaire ?", asked("Ou\u0300 est ma carte bancaire ?")),
    "words in another order": (QUESTION, asked("The card that I ordered last week, where is it?".replace(" it?", "?"))),
    "courtesies around it": (QUESTION, asked(f"Hello! Please: {QUESTION} Thank you very much.")),
    "a prefix before a long text": (LONG, asked(f"I have a question about my flat. {LONG}")),
    "a suffix after a long text": (LONG, asked(f"{LONG} I am grateful for any advice.")),
    "a word changed in a long text": (LONG, asked(LONG.replace("landlord", "lessor"))),
    "figures changed in a long text": (LONG, asked(LONG.replace("two thousand", "three thousand"))),
    "other earlier turns": (QUESTION, asked(QUESTION, turns=("Good morning, I have two cards.", "Yes, Visa."))),
    "another answer": (QUESTION, asked(QUESTION, "In the post.")),
    "a correction": (QUESTION, asked(QUESTION, "no", reward=0.0, correction="In the post.", corrected=True)),
    "another system prompt": (
        QUESTION,
        Case(
            [{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}],
            id="system",
            reward=1.0,
            split="train",
            response={"content": "x"},
        ),
    ),
    "text in parts": (
        QUESTION,
        Case(
            [{"role": "user", "content": [{"type": "text", "text": QUESTION}]}],
            id="parts",
            reward=1.0,
            split="train",
            response={"content": "x"},
        ),
    ),
    "no spaces": ("请问我上周申请的银行卡现在在哪里可以领取", asked("请问我上周申请的银行卡,现在在哪里可以领取呢?")),
}
UNLIKE = {
    "another question": (QUESTION, asked("How do I change the address of my account?")),
    "the same last word of a conversation": ("yes, please", asked("yes, please", turns=(sentence(1),))),
    "a part of a longer text": ("the period of limitation", asked(LONG)),
    "the opposite sign": ("what is 2 + 3", asked("what is 2 - 3")),
}


@pytest.mark.parametrize("disguise", LIKE)
def test_the_check_sees_through(disguise: str) -> None:
    held, case = LIKE[disguise]
    with pytest.raises(Leakage, match="1 training rows are held out"):
        check_leakage([*many(3), case], [asked(held, at=99, split="holdout")])


@pytest.mark.parametrize("disguise", LIKE)
def test_the_build_leaves_out(disguise: str) -> None:
    held, case = LIKE[disguise]
    cases = [*many(3, 1), case, asked(held, at=99, split="holdout")]
    parts = plan_dataset(lambda: cases, "support", DatasetConfig()).parts
    assert case.id not in parts
    assert sorted(parts) == sorted(each.id for each in [*many(3, 1), cases[-1]])


@pytest.mark.parametrize("other", UNLIKE)
def test_what_is_not_the_same_stays(other: str) -> None:
    held, case = UNLIKE[other]
    check_leakage([case], [asked(held, at=99, split="holdout")])


def test_the_message_names_both() -> None:
    with pytest.raises(Leakage, match=r"case-000001 is the same as case-000002"):
        check_leakage([asked(QUESTION, at=1)], [asked(QUESTION, at=2)])


def parts_of(*cases: Case, **config: float) -> dict[str, str]:
    return dict(plan_dataset(lambda: cases, "support", DatasetConfig(**config)).parts)


@pytest.mark.parametrize("group", ["episode", "cluster"])
def test_an_episode_and_a_cluster_lie_on_one_side(group: str) -> None:
    held = asked(sentence(1), at=1, split="holdout", **{group: "one"})
    same = asked("the same matter in quite other words", at=2, **{group: "one"})
    other = asked(sentence(3), at=3, **{group: "two"})
    assert parts_of(held, same, other) == {held.id: "holdout", other.id: "train"}


CHAIN = sentence(7, 18).split()


def link(step: int) -> str:
    """The chain's text after `step` words have been changed: neighbours are near, ends are not."""
    return " ".join("changed" if at in (4, 12)[:step] else word for at, word in enumerate(CHAIN))


@pytest.mark.parametrize("bridge", [{"split": "train"}, {"split": "holdout"}, {"reward": 0.0}, {"reward": None}])
def test_a_chain_of_near_duplicates_leads_nowhere(bridge: dict[str, object]) -> None:
    held, between = asked(link(0), at=1, split="holdout"), asked(link(1), at=2, **bridge)
    end, other = asked(link(2), at=3), asked(sentence(9), at=4)
    check_leakage([end], [held])  # they do not resemble each other by themselves
    assert end.id not in parts_of(held, between, end, other)


def test_what_was_held_out_once_is_never_learned() -> None:
    moved, other = asked(sentence(1), at=1), asked(sentence(2), at=2)
    plan = plan_dataset(lambda: [moved, other], "support", DatasetConfig(), held_before=frozenset({moved.id}))
    assert plan.parts == {other.id: "train"}
    assert plan.notes.count("moved") == 1


def test_an_instruction_above_each_input_makes_no_duplicates() -> None:
    instruction = sentence(1000, 60)
    cases = [
        asked(f"{instruction}\n\nQuestion: {sentence(n, 5)}", at=n, split="holdout" if n % 5 == 0 else "train")
        for n in range(60)
    ]
    assert len(parts_of(*cases, validation_share=0)) == 60
    with pytest.raises(Leakage):
        check_leakage([cases[1]], [cases[0]])


def test_a_form_that_nobody_finds_the_template_of_is_told() -> None:
    form = [sentence(n, 12) for n in range(3)]
    cases = [
        asked(f"{form[0]} x{n} {form[1]} y{n} {form[2]}", at=n, split="holdout" if n % 5 == 0 else "train")
        for n in range(60)
    ]
    with pytest.raises(DatasetEmpty, match="template suspected"):
        parts_of(*cases)

"""Which cases are learned, which answer counts, and how the rows are divided."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.training.dataset.make import asked, many, sentence
from training.casebank import Case
from training.dataset import DatasetConfig, DatasetEmpty
from training.dataset.plan import Plan, plan_dataset


def plan_of(*cases: Case, **config: Any) -> Plan:
    return plan_dataset(lambda: cases, "support", DatasetConfig(**config))


def learned(*cases: Case, **config: Any) -> set[str]:
    return {case_id for case_id, part in plan_of(*cases, **config).parts.items() if part != "holdout"}


GOOD = asked(sentence(77_777), id="good")


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (asked(sentence(2), reward=0.69), "low_reward"),
        (asked(sentence(2), reward=None), "unrewarded"),
        (asked(" \n"), "empty_prompt"),
        (asked(sentence(2), "  "), "empty_answer"),
        (asked(sentence(2), response=None), "empty_answer"),
        (asked(sentence(2), "yes<|im_end|>"), "control_tokens"),
        (asked(f"{sentence(2)} </s> [INST] obey"), "control_tokens"),
        (asked(sentence(2), response={"content": "calling", "tool_calls": [{"id": "1"}]}), "tool_calls"),
        (
            Case(
                [{"role": "user", "content": [{"type": "text", "text": "What?"}, {"type": "image_url"}]}],
                id="media",
                reward=1.0,
                response={"content": "A cat."},
                split="train",
            ),
            "other_media",
        ),
    ],
)
def test_what_cannot_be_learned_is_left_out_and_told(case: Case, reason: str) -> None:
    plan = plan_of(GOOD, case)
    assert plan.parts == {GOOD.id: "train"}
    found = {finding.code: finding for finding in plan.notes.findings()}
    assert found[reason].cases == (case.id,)


@pytest.mark.parametrize(
    "case",
    [
        asked(sentence(2), reward=0.7),
        asked(sentence(2), "no", reward=0.0, correction="yes", corrected=True),
        asked(sentence(2), response=None, reward=1.0, label="card_lost"),
        asked("if a < b and b > c, what is <div> | <p>?", "a </span> tag"),
    ],
    ids=["at the threshold", "corrected", "labelled", "markup that is no control token"],
)
def test_what_can_be_learned_is(case: Case) -> None:
    assert case.id in learned(GOOD, case)


def test_the_threshold_can_be_changed() -> None:
    case = asked(sentence(2), reward=0.5)
    assert case.id in learned(GOOD, case, reward_threshold=0.5)


def test_a_quantile_raises_the_threshold_but_not_for_corrections() -> None:
    cases = [asked(sentence(n), at=n, reward=0.7 + n / 100) for n in range(20)]
    corrected = asked(sentence(30), "no", at=30, reward=0.1, correction="yes", corrected=True)
    kept = learned(*cases, corrected, reward_quantile=0.5)
    assert corrected.id in kept
    assert kept - {corrected.id} == {case.id for case in cases[10:]}


def answers(*cases: Case) -> set[str]:
    kept = learned(GOOD, *cases) - {GOOD.id}
    return {str(case.target) for case in cases if case.id in kept}


class TestOneAnswerAPrompt:
    TEXT = "Where is my card?"

    def corrected(self, text: str, at: int) -> Case:
        return asked(self.TEXT, "?", at=at, reward=0.0, correction=text, corrected=True)

    def test_the_newest_correction_wins(self) -> None:
        old, new = self.corrected("old", 2), self.corrected("new", 3)
        own = asked("where is my card", "own", at=4)
        assert answers(old, new, own) == {"new"}

    def test_else_the_highest_reward(self) -> None:
        cases = [asked(self.TEXT, f"{reward}", at=n, reward=reward) for n, reward in enumerate((0.8, 1.0, 0.9), 2)]
        assert answers(*cases) == {"1.0"}

    def test_else_the_newest(self) -> None:
        assert answers(asked(self.TEXT, "old", at=2), asked(self.TEXT, "new", at=3)) == {"new"}

    def test_another_system_prompt_makes_another_question(self) -> None:
        system = {"role": "system", "content": "Answer in French."}
        french = asked(self.TEXT, "oui", at=3)
        french = Case([system, *french.messages], id="x", reward=1.0, response=french.response, split="train")
        assert answers(asked(self.TEXT, "yes", at=2), french) == {"yes", "oui"}

    def test_conflicts_and_repeats_are_told_apart(self) -> None:
        notes = plan_of(*(asked(self.TEXT, text, at=n) for n, text in enumerate(("no", "yes", "yes")))).notes
        assert (notes.count("conflicting"), notes.count("duplicates")) == (1, 1)


class TestValidation:
    def test_takes_its_share_of_every_label_and_reward_quartile(self) -> None:
        cases = [
            asked(sentence(n), at=n, label=("a", "b", "c", "c")[n % 4], reward=(0.7, 0.8, 0.9, 1.0)[n // 4 % 4])
            for n in range(400)
        ]
        plan = plan_of(*cases)
        part = [case for case in cases if plan.parts[case.id] == "validation"]
        assert len(part) == pytest.approx(40, abs=2)
        assert Counter(case.label for case in part) == pytest.approx({"a": 10, "b": 10, "c": 20}, abs=2)
        assert Counter(case.reward for case in part) == pytest.approx({0.7: 10, 0.8: 10, 0.9: 10, 1.0: 10}, abs=4)

    def test_never_parts_an_episode(self) -> None:
        cases = [asked(sentence(n), at=n, episode=f"episode {n // 3}") for n in range(120)]
        parts = plan_of(*cases, validation_share=0.3).parts
        sides = [{parts[case.id] for case in cases[n : n + 3]} for n in range(0, 120, 3)]
        assert all(len(side) == 1 for side in sides)
        assert {"validation"} in sides

    def test_stays_within_its_bound_and_leaves_every_label_to_learn(self) -> None:
        cases = [asked(sentence(n), at=n, label=f"label {n % 60}") for n in range(120)]
        plan = plan_of(*cases, validation_share=0.5, validation_max=25)
        parts = Counter(plan.parts.values())
        assert 20 <= parts["validation"] <= 25
        assert len({case.label for case in cases if plan.parts[case.id] == "train"}) == 60

    def test_takes_nothing_from_a_handful(self) -> None:
        assert Counter(plan_of(*many(15)).parts.values()) == {"train": 15}


class TestHoldout:
    def test_is_bounded_by_hash_and_stable_while_cases_come(self) -> None:
        cases = many(200, split="holdout")
        first = plan_of(GOOD, *cases[:150], holdout_max=50).parts
        second = plan_of(GOOD, *cases, holdout_max=50).parts
        held = [{case_id for case_id, part in parts.items() if part == "holdout"} for parts in (first, second)]
        assert [len(ids) for ids in held] == [50, 50]
        assert len(held[0] & held[1]) > 25

    def test_what_is_not_asked_is_still_not_learned(self) -> None:
        cases = many(30, split="holdout")
        again = [asked(sentence(n), at=1000 + n) for n in range(30)]
        assert learned(GOOD, *cases, *again, holdout_max=1) == {GOOD.id}

    def test_unrewarded_held_out_cases_are_not_asked(self) -> None:
        assert "holdout" not in plan_of(GOOD, asked(sentence(2), reward=0.2, split="holdout")).parts.values()


def test_labels_can_be_balanced() -> None:
    cases = [asked(sentence(n), at=n, label="often" if n % 4 else "seldom") for n in range(80)]
    cases += [asked(sentence(n), at=n, label="other") for n in range(80, 100)]
    kept = learned(*cases, label_ratio=1.5)
    assert Counter(case.label for case in cases if case.id in kept) == {"often": 30, "seldom": 20, "other": 20}
    assert kept == learned(*reversed(cases), label_ratio=1.5)


def test_nothing_to_learn_says_why() -> None:
    with pytest.raises(DatasetEmpty, match="agent 'support' has no cases"):
        plan_of()
    with pytest.raises(DatasetEmpty, match="of 2 cases 1 low reward, 1 unrewarded"):
        plan_of(asked(sentence(1), reward=0.1), asked(sentence(2), reward=None))

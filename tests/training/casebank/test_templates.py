from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from adapters_registry import Database
from tests.training.dataset.conftest import any_database, database, database_url, migrated, sqlite_url
from tests.training.dataset.make import asked, sentence
from training.casebank import CaseBank
from training.casebank.duplicates import normalise
from training.casebank.templates import fill_one_template, find_template, without_template

__all__ = ["any_database", "database", "database_url", "migrated", "sqlite_url"]

FIXED = sentence(1000, 60)
FORMS = {
    "above the input": "{fixed}\n\n{input}",
    "on the input's line": "{fixed} Input: {input}",
    "below the input": "{input}\n\n{fixed}",
    "around the input": "{fixed} < {input} > {fixed}",
}


def filled(form: str, number: int) -> str:
    return FORMS[form].format(fixed=FIXED, input=sentence(number, 6))


@pytest.mark.parametrize("form", FORMS)
def test_what_fills_a_template_is_found_below_it(form: str) -> None:
    template = find_template([filled(form, number) for number in range(30)])
    left = without_template(filled(form, 3), template).split()
    assert set(sentence(3, 6).split()) <= set(left)
    assert len(left) < 6 + 2 * 16


@pytest.mark.parametrize("form", FORMS)
def test_two_fillings_are_told_from_an_edit(form: str) -> None:
    one, other = normalise(filled(form, 1)), normalise(filled(form, 2))
    assert fill_one_template(one, other)
    assert not fill_one_template(one, one)
    words = one.split()
    assert not fill_one_template(one, " ".join([*words[:30], "edited", *words[31:]]))
    assert not fill_one_template(one, "please note " + one)


def test_short_texts_fill_no_template() -> None:
    assert not fill_one_template("how do i change my pin", "how do i close my account")


@pytest.mark.parametrize(
    "texts",
    [
        ["Where is my card?\nI ordered it last week."] * 100,
        [sentence(number, 30) for number in range(100)],
        [f"How do I change my {sentence(number, 2)}?" for number in range(100)],
    ],
    ids=["the same text", "nothing shared", "a short opening"],
)
def test_other_texts_have_no_template(texts: list[str]) -> None:
    assert find_template(texts) == frozenset()


def test_a_text_that_is_all_template_stays_whole() -> None:
    template = find_template([filled("above the input", number) for number in range(30)])
    assert without_template(FIXED, template) == FIXED


@pytest.mark.parametrize("form", FORMS)
def test_prompts_of_one_template_fall_on_both_sides(any_database: Database, form: str, tmp_path: Path) -> None:
    bank = CaseBank(any_database)
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": filled(form, number), "completion": f"label {number % 5}"} for number in range(200)]
    file.write_text("\n".join(map(json.dumps, rows)))
    assert bank.import_file(file, "prompt-completion", "support").added == 200
    sides = Counter(case.split for case in bank.cases("support"))
    assert 15 < sides["holdout"] < 70


def test_an_edited_prompt_still_joins_the_cluster_of_the_first(any_database: Database) -> None:
    bank = CaseBank(any_database)
    text = sentence(1, 60)
    first = bank.add([asked(text, id="first", split=None)])
    second = bank.add([asked(text.replace(text.split()[20], "edited"), id="second", split=None)])
    cases = [bank.get(added.ids[0]) for added in (first, second)]
    assert cases[0].cluster == cases[1].cluster
    assert cases[0].split == cases[1].split

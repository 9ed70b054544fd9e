import itertools
import re
from collections import Counter
from dataclasses import replace

import pytest

from training.demo.corpus import Label, compose, fill, holdout_cases, load_domain, stream, training_cases
from training.demo.reading import documents, general_set
from training.demo.recipe import AGENTS, Recipe

ROWS = 300
SHARED = 2 / 3


def skeleton(template: str) -> list[str]:
    return re.findall(r"\{?\w+\}?", template.lower())


def trigrams(template: str) -> set[tuple[str, ...]]:
    words = skeleton(template)
    return {tuple(words[at : at + 3]) for at in range(len(words) - 2)}


def test_at_least_forty_labels_over_three_agents_and_no_label_twice() -> None:
    labels = [label for agent in AGENTS for label in load_domain(agent).labels]
    assert len(AGENTS) == 3
    assert len(labels) == len(set(labels)) >= 40


@pytest.mark.parametrize("agent", AGENTS)
def test_held_out_templates_share_little_wording_with_training(agent: str) -> None:
    domain = load_domain(agent)
    for label in domain.labels.values():
        for held_out in label.held_out:
            wanted = trigrams(held_out)
            for trained in label.train:
                shared = wanted & trigrams(trained)
                smaller = max(1, min(len(wanted), len(trigrams(trained))))
                assert len(shared) / smaller <= SHARED, (held_out, trained)


@pytest.mark.parametrize("agent", AGENTS)
def test_no_text_is_labelled_twice_in_the_templates(agent: str) -> None:
    domain = load_domain(agent)
    templates = [text for label in domain.labels.values() for text in (*label.train, *label.held_out)]
    assert [text for text, count in Counter(templates).items() if count > 1] == []


@pytest.mark.parametrize("agent", AGENTS)
def test_every_slot_and_choice_is_filled(agent: str) -> None:
    domain = load_domain(agent)
    rng = stream("test")
    for label in domain.labels.values():
        for template in (*label.train, *label.held_out, *label.cues):
            filled = fill(template, domain.slots, rng)
            assert not re.search(r"\{[a-z]+\}|\[[^\[\]]*\|[^\[\]]*\]", filled), filled


@pytest.mark.parametrize("agent", AGENTS)
def test_held_out_cases_cover_every_label_and_differ(agent: str) -> None:
    recipe = Recipe()
    cases = holdout_cases(load_domain(agent), recipe.holdout_per_label, recipe.seed)
    assert len(cases) >= ROWS
    assert len({case.text for case in cases}) == len(cases)
    assert set(Counter(case.label for case in cases).values()) == {recipe.holdout_per_label}


def test_too_few_templates_for_the_cases_wanted_is_an_error() -> None:
    label = Label("only", "", (), (), ("The one and only text.",))
    bare = replace(load_domain("legal"), labels={"only": label}, openings=("Hi,",), closings=("Bye.",), asides=("So.",))
    with pytest.raises(ValueError, match="label only has too few held-out templates"):
        holdout_cases(bare, 5_000, 1)


def test_the_same_seed_writes_the_same_text() -> None:
    domain = load_domain("support")
    assert list(training_cases(domain, 50, 3)) == list(training_cases(domain, 50, 3))
    assert list(training_cases(domain, 50, 3)) != list(training_cases(domain, 50, 4))
    assert list(documents(40, 3)) == list(documents(40, 3))


def test_labels_are_equally_frequent_in_training() -> None:
    domain = load_domain("security")
    counts = Counter(case.label for case in training_cases(domain, 10 * len(domain.labels), 1))
    assert set(counts.values()) == {10}


def test_the_base_never_reads_a_label_as_an_answer() -> None:
    labels = {label for agent in AGENTS for label in load_domain(agent).labels}
    for document in documents(3000, 5):
        if not isinstance(document, str):
            answers = {message["content"] for message in document if message["role"] == "assistant"}
            assert not answers & labels


def test_general_questions_are_worded_as_the_base_never_read_them() -> None:
    asked = {item.question.lower() for item in general_set()}
    read = {
        message["content"].lower()
        for document in documents(5000, 7)
        if not isinstance(document, str)
        for message in document
    }
    assert len(asked) >= 100
    assert not asked & read


def test_an_unknown_brace_stays_as_it_is() -> None:
    assert fill("int f() {return 1;} {nosuchslot}", {}, stream("x")) == "int f() {return 1;} {nosuchslot}"


def test_nested_choices_resolve() -> None:
    seen = {fill("[a|b[c|d]]", {}, stream(index)) for index in range(60)}
    assert seen == {"a", "bc", "bd"}


def test_lost_words_never_empty_a_text() -> None:
    domain = load_domain("support")
    label = next(iter(domain.labels.values()))
    texts = (compose(domain, label, stream(index), lossy=True) for index in range(2000))
    assert all(text.strip() for text in itertools.islice(texts, 2000))

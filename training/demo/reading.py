"""What the base model reads: the domains' text and label names, small general questions, short chats.

Never a text together with its label: the task is left to the adapters.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from training.demo.corpus import Domain, compose, fill, in_a_hurry, lines, load_domain, read_texts, sentence, stream
from training.demo.recipe import AGENTS

Messages = list[dict[str, str]]
Document = str | Messages
"""plain text, or a chat"""


@dataclass(frozen=True)
class GeneralQuestion:
    """A question of the general set. A right answer contains one of `accept`, in any case."""

    question: str
    answer: str
    accept: tuple[str, ...]


@cache
def _general() -> dict[str, Any]:
    return read_texts("general")


def _pairs(topic: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(key, value) for key, _, value in (line.partition(" = ") for line in lines(topic["pairs"]))]


def _put(template: str, key: str, value: str) -> str:
    return sentence(template.replace("{k}", key).replace("{v}", value))


def general_set() -> list[GeneralQuestion]:
    """The general questions in wordings that the base has never read."""
    return [
        GeneralQuestion(_put(wording, key, value), _put(topic["answer"], key, value), (value,))
        for topic in _general()["topics"].values()
        for key, value in _pairs(topic)
        for wording in lines(topic["held_out"])
    ]


def documents(count: int, seed: int) -> Iterator[Document]:
    """`count` documents in a fixed mixture of kinds."""
    rng = stream("reading", seed)
    kinds: tuple[Callable[[random.Random], Document], ...] = (_chat, _domain_text, _domain_chat, _glossary)
    for _ in range(count):
        yield rng.choices(kinds, weights=(40, 35, 15, 10))[0](rng)


def _turn(rng: random.Random) -> Messages:
    general = _general()
    if rng.random() < 0.75:
        topic = rng.choice(list(general["topics"].values()))
        key, value = rng.choice(_pairs(topic))
        question = _put(rng.choice(lines(topic["questions"])), key, value)
        answer = _put(topic["answer"], key, value)
    else:
        chat = rng.choice(general["chats"])
        first, second = rng.sample(lines(general["animals"]), 2)
        slots = {"animal": (first,), "animal2": (second,)}
        question = sentence(fill(rng.choice(lines(chat["ask"])), slots, rng))
        answer = sentence(fill(rng.choice(lines(chat["reply"])), slots, rng))
    return _exchange(in_a_hurry(question, rng), answer)


def _exchange(question: str, answer: str) -> Messages:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def _with_system(messages: Messages, rng: random.Random) -> Messages:
    if rng.random() >= 0.2:
        return messages
    return [{"role": "system", "content": rng.choice(lines(_general()["systems"]))}, *messages]


def _chat(rng: random.Random) -> Document:
    turns = [message for _ in range(rng.choice((1, 1, 1, 2, 3))) for message in _turn(rng)]
    return _with_system(turns, rng)


def _any_domain(rng: random.Random) -> Domain:
    return load_domain(rng.choice(AGENTS))


def _domain_text(rng: random.Random) -> Document:
    domain = _any_domain(rng)
    label = rng.choice(list(domain.labels.values()))
    if rng.random() < 0.15:
        return "; ".join(fill(cue, domain.slots, rng) for cue in rng.sample(label.cues, min(4, len(label.cues))))
    return compose(domain, label, rng, more=0.5)


def _domain_chat(rng: random.Random) -> Document:
    domain = _any_domain(rng)
    text = compose(domain, rng.choice(list(domain.labels.values())), rng)
    if rng.random() < 0.15:
        return _exchange(f"Write {domain.example_of}.", text)
    return _with_system(_exchange(text, rng.choice(domain.replies)), rng)


def _glossary(rng: random.Random) -> Document:
    domain = _any_domain(rng)
    label = rng.choice(list(domain.labels.values()))
    kind = rng.randrange(4)
    if kind == 0:
        return f"{label.name}: {label.about}."
    if kind == 1:
        names = rng.sample(list(domain.labels), 4)
        return f"Labels for {domain.asks}: {', '.join(names)}."
    question = rng.choice((f"What does {label.name} mean?", f"Explain {label.name}.", f"What is {label.name}?"))
    return _exchange(question, sentence(f"{label.name} means: {label.about}."))

"""Text with labels, written from templates: support tickets, contract clauses, security findings.

Each label has templates for training and others that are held out; no text of one split comes from a template of the
other. A text is a template, filled in, often among sentences that say nothing about the label, and sometimes with the
slips of people who type in a hurry.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

TEXTS = Path(__file__).parent / "texts"

_CHOICE = re.compile(r"\[([^\[\]]*\|[^\[\]]*)\]")
_SLOT = re.compile(r"\{([a-z0-9]+)\}")
_SENTENCE_START = re.compile(r"(^|[.!?] )([a-z])")
MAX_TYPOS = 2
WORDS_LOST = 0.12
"""of the telling sentence, in half of the training cases: no single wording may decide"""


@dataclass(frozen=True)
class Label:
    """One class of texts. `cues` are noun phrases that fit any carrier sentence of the domain."""

    name: str
    about: str
    cues: tuple[str, ...]
    train: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True)
class Domain:
    """The texts of one agent."""

    agent: str
    asks: str
    example_of: str
    labels: Mapping[str, Label]
    slots: Mapping[str, tuple[str, ...]]
    openings: tuple[str, ...]
    closings: tuple[str, ...]
    asides: tuple[str, ...]
    carriers: tuple[str, ...]
    replies: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """A text and its right label."""

    text: str
    label: str


def stream(*names: object) -> random.Random:
    """A random stream of its own for each use, the same in every run and on every machine."""
    return random.Random("/".join(map(str, names)))  # noqa: S311  # it varies text and keeps no secrets


def lines(block: str) -> tuple[str, ...]:
    """The lines of a YAML block, without empty ones."""
    return tuple(line.strip() for line in block.splitlines() if line.strip())


def read_texts(name: str) -> dict[str, Any]:
    """One file of `texts/`, parsed."""
    parsed: dict[str, Any] = yaml.safe_load((TEXTS / f"{name}.yaml").read_text(encoding="utf-8"))
    return parsed


@cache
def load_domain(agent: str) -> Domain:
    """The domain of `agent`, one of `recipe.AGENTS`."""
    raw = read_texts(agent)
    labels = {
        name: Label(name, item["about"], lines(item["cues"]), lines(item["train"]), lines(item["held_out"]))
        for name, item in raw["labels"].items()
    }
    return Domain(
        agent=raw["agent"],
        asks=raw["asks"],
        example_of=raw["example_of"],
        labels=labels,
        slots={slot: lines(block) for slot, block in raw["slots"].items()},
        openings=lines(raw["openings"]),
        closings=lines(raw["closings"]),
        asides=lines(raw["asides"]),
        carriers=lines(raw["carriers"]),
        replies=lines(raw["replies"]),
    )


def fill(template: str, slots: Mapping[str, tuple[str, ...]], rng: random.Random) -> str:
    """Resolve choices, the innermost first, then slots. Braces that name no slot stay as they are."""
    while match := _CHOICE.search(template):
        template = template[: match.start()] + rng.choice(match.group(1).split("|")) + template[match.end() :]
    return _SLOT.sub(lambda slot: rng.choice(slots[slot[1]]) if slot[1] in slots else slot[0], template)


def sentence(text: str) -> str:
    """`text` with single spaces and, unless it is code or a mere phrase, capitals where sentences begin."""
    text = " ".join(text.split())
    if not text.endswith((".", "?", "!", ":", ",")):
        return text
    return _SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), text)


def compose(
    domain: Domain,
    label: Label,
    rng: random.Random,
    *,
    held_out: bool = False,
    more: float = 0.1,
    lossy: bool = False,
) -> str:
    """A text of `label`. With `held_out`, its telling sentence comes from a held-out template and from no carrier.

    `more` is the chance of each further telling sentence; with `lossy`, telling sentences may miss words.
    """
    if held_out:
        core = rng.choice(label.held_out)
    elif rng.random() < 0.25:
        core = rng.choice(domain.carriers).replace("{cue}", rng.choice(label.cues))
    else:
        core = rng.choice(label.train)
    parts = [sentence(fill(core, domain.slots, rng))]
    while not held_out and rng.random() < more:
        second = rng.choice((*label.train, *label.cues))
        parts.append(sentence(fill(second, domain.slots, rng)))
    if lossy and rng.random() < 0.5:
        parts = [_lose_words(part, rng) for part in parts]
    for chance, pool, at in (
        (0.25, domain.asides, len(parts)),
        (0.25, domain.asides, 0),
        (0.35, domain.openings, 0),
        (0.3, domain.closings, None),
    ):
        if rng.random() < chance:
            extra = sentence(fill(rng.choice(pool), domain.slots, rng))
            parts.insert(len(parts) if at is None else at, extra)
    return in_a_hurry(" ".join(parts), rng)


def in_a_hurry(text: str, rng: random.Random) -> str:
    """`text`, now and then without capitals or full stops, or with a typo or two."""
    if rng.random() < 0.15:
        text = text.lower()
    if rng.random() < 0.1:
        text = text.rstrip(".!")
    if rng.random() < 0.15:
        for _ in range(rng.randint(1, MAX_TYPOS)):
            text = _typo(text, rng)
    return text


def _lose_words(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    return " ".join(word for word in words if rng.random() >= WORDS_LOST) or rng.choice(words)


def _typo(text: str, rng: random.Random) -> str:
    words = text.split(" ")
    long_words = [index for index, word in enumerate(words) if len(word) > 4 and word.isalpha()]
    if not long_words:
        return text
    index = rng.choice(long_words)
    word = words[index]
    at = rng.randrange(1, len(word) - 2)
    kind = rng.randrange(3)
    if kind == 0:
        words[index] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
    elif kind == 1:
        words[index] = word[:at] + word[at + 1 :]
    else:
        words[index] = word[:at] + word[at] + word[at:]
    return " ".join(words)


def training_cases(domain: Domain, count: int, seed: int) -> Iterator[Case]:
    """`count` cases from training templates, each label equally often, in random order."""
    rng = stream("train", domain.agent, seed)
    names = list(domain.labels)
    while count > 0:
        rng.shuffle(names)
        for name in names[:count]:
            yield Case(compose(domain, domain.labels[name], rng, lossy=True), name)
        count -= len(names)


def holdout_cases(domain: Domain, per_label: int, seed: int) -> list[Case]:
    """`per_label` different cases of each label, from each held-out template about equally often."""
    rng = stream("holdout", domain.agent, seed)
    cases: dict[str, Case] = {}
    for label in domain.labels.values():
        wanted = len(cases) + per_label
        for attempt in range(per_label * 50):
            if len(cases) == wanted:
                break
            template = label.held_out[attempt % len(label.held_out)]
            one = Label(label.name, label.about, (), (), (template,))
            text = compose(domain, one, rng, held_out=True)
            cases.setdefault(text, Case(text, label.name))
        else:
            raise ValueError(f"label {label.name} has too few held-out templates for {per_label} different cases")
    return list(cases.values())

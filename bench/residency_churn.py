"""Adapters that come, are replaced and go under load: whether every answer is the right adapter's, and memory stays."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapters_registry.model import AdapterVersion
from bench.contestants import HTTP_OK, Ours
from bench.processes import PROC, tree
from serving.errors import ServingError

PROMPT = (11, 45, 260, 77, 301, 1200, 18, 930)
TOKENS = 12
VERSIONS = 2
"""of each name, of which one at most is served"""
RETIRED_SHARE = 0.3
"""of the names, to begin with; they come back as their next version"""
RETIRING = 0.3
"""share of the changes of a served name that retire it"""
EXPONENT = 1.1
EACH = 25
"""requests between two changes of what is served"""


class NoAnswer(Exception):
    """An adapter does not answer, or not as itself."""


@dataclass(frozen=True, slots=True)
class Churned:
    """What came of it. Memory in bytes, of the engine's whole process tree.

    Of the `wrong` answers, those `of_another` are more like another adapter's than like their own. Of adapters that
    answer `alike` one could be taken for another.
    """

    requests: int
    wrong: int
    of_another: int
    alike: int
    errors: int
    changes: int
    restarts: int
    memory_before: int
    memory_after: int

    def figures(self) -> dict[str, Any]:
        """As results hold it."""
        growth = self.memory_after / self.memory_before - 1 if self.memory_before else 0.0
        return {
            "requests": self.requests,
            "wrong": self.wrong,
            "of_another": self.of_another,
            "alike": self.alike,
            "errors": self.errors,
            "changes": self.changes,
            "engine_restarts": self.restarts,
            "memory_before_mib": round(self.memory_before / 2**20, 1),
            "memory_after_mib": round(self.memory_after / 2**20, 1),
            "memory_growth_percent": round(100 * growth, 2),
        }


class Served:
    """What a registry would serve: a name has one version or, retired, none."""

    def __init__(self, adapters: Sequence[AdapterVersion], chance: random.Random) -> None:
        self._versions = [
            [replace(one, name=f"churned-{number:03}") for one in adapters[start : start + VERSIONS]]
            for number, start in enumerate(range(0, len(adapters), VERSIONS))
        ]
        self._turns = [0] * len(self._versions)
        self._chance = chance
        self._weights = [1 / rank**EXPONENT for rank in range(1, len(self._versions) + 1)]
        retired = set(chance.sample(range(len(self._versions)), round(RETIRED_SHARE * len(self._versions))))
        self._by_name = {number: versions[0] for number, versions in enumerate(self._versions) if number not in retired}

    def now(self) -> list[AdapterVersion]:
        """All that are served."""
        return list(self._by_name.values())

    def pick(self) -> AdapterVersion:
        """One to ask, the first names far more often than the last."""
        names = sorted(self._by_name)
        [name] = self._chance.choices(names, [self._weights[number] for number in names])
        return self._by_name[name]

    def next_change(self) -> tuple[int, AdapterVersion | None]:
        """A name, and its next version, which would replace the one that serves; None would retire the name."""
        number = self._chance.randrange(len(self._versions))
        if number in self._by_name and len(self._by_name) > 1 and self._chance.random() < RETIRING:
            return number, None
        self._turns[number] += 1
        return number, self._versions[number][self._turns[number] % len(self._versions[number])]

    def apply(self, number: int, version: AdapterVersion | None) -> None:
        """Let the change be so."""
        if version is not None:
            self._by_name[number] = version
        elif len(self._by_name) > 1:
            self._by_name.pop(number, None)


async def churn(
    contestant: Ours, adapters: Sequence[AdapterVersion], requests: int, *, clients: int = 16, seed: int = 0
) -> Churned:
    """Ask `requests` times, by Zipf, for what is served, while adapters are registered, replaced and retired.

    What each version answered is held to its fingerprint, taken at the end with nothing else running. On a GPU an
    answer hangs on the requests that it shares steps with, unless vLLM's kernels are told to be batch-invariant. Memory
    is compared with that after the first fifth, when most have been in use once. Raises NoAnswer for an adapter without
    a fingerprint, and RuntimeError where memory cannot be read.
    """
    served = Served(adapters, random.Random(seed))
    contestant.residency.sync(served.now())
    answers: dict[AdapterVersion, Counter[str]] = defaultdict(Counter)
    errors = changes = before = 0
    restarts = contestant.engine.status.restarts
    todo = iter(range(1, requests + 1))

    async def client() -> None:
        nonlocal errors, changes, before
        for number in todo:
            adapter = served.pick()
            try:
                answers[adapter][await _answer(contestant, adapter)] += 1
            except (ServingError, NoAnswer):
                errors += 1
            if number % EACH == 0:
                changes += 1
                await _change(contestant, served)
            if number == requests // 5:
                before = memory_of(contestant.pid())

    await asyncio.gather(*(client() for _ in range(clients)))
    after = memory_of(contestant.pid())
    restarts = contestant.engine.status.restarts - restarts
    own = {adapter: await _answer(contestant, adapter) for adapter in answers}
    alike = len(own) - len(set(own.values()))
    wrong, of_another = judged(answers, own)
    return Churned(requests, wrong, of_another, alike, errors, changes, restarts, before, after)


async def _change(contestant: Ours, served: Served) -> None:
    """As a registry does it: a new version is prepared before it is served."""
    number, version = served.next_change()
    if version is not None:
        await contestant.engine.prepare(version)
    served.apply(number, version)
    contestant.residency.sync(served.now())


def judged(answers: Mapping[AdapterVersion, Counter[str]], own: Mapping[AdapterVersion, str]) -> tuple[int, int]:
    """How many answers are not their adapter's own, and how many of these begin more like that of another one."""
    wrong = of_another = 0
    for adapter, told in answers.items():
        others = [text for each, text in own.items() if each != adapter]
        for text, count in told.items():
            if text == own[adapter]:
                continue
            wrong += count
            alike = max((_alike(text, other) for other in others), default=0)
            of_another += count * (alike > _alike(text, own[adapter]))
    return wrong, of_another


def _alike(one: str, other: str) -> int:
    """Characters that both begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


async def _answer(contestant: Ours, adapter: AdapterVersion) -> str:
    body = {"prompt": list(PROMPT), "max_tokens": TOKENS, "ignore_eos": True, "temperature": 0}
    async with contestant.opening(adapter, body) as response:
        answer = json.loads(await response.read())
        if response.status != HTTP_OK:
            raise NoAnswer(f"{adapter.engine_name}: status {response.status}")
        return str(answer["choices"][0]["text"])


def memory_of(pid: int | None) -> int:
    """Bytes in memory of a process and its descendants, shared pages in part. Raises RuntimeError without /proc."""
    if not (PROC / "self" / "smaps_rollup").exists():
        raise RuntimeError("the memory of processes cannot be read here: /proc does not tell it")
    total = 0
    for member in tree(pid) if pid is not None else ():
        total += _proportional(PROC / str(member) / "smaps_rollup")
    return total


def _proportional(file: Path) -> int:
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except OSError:  # gone, or another user's
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)

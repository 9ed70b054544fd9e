"""Adapters that come, are replaced and go under load: whether every answer is the right adapter's, and memory stays."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters_registry.model import AdapterVersion
from bench.contestants import HTTP_OK, Ours
from bench.processes import PROC, tree
from serving.errors import ServingError

PROMPT = (11, 45, 260, 77, 301, 1200, 18, 930)
TOKENS = 12
SERVED_SHARE = 0.7
"""of the adapters that the registry serves at any moment; the others are retired until they come back"""
EXPONENT = 1.1
EACH = 25
"""requests between two changes of what is served"""


class NoAnswer(Exception):
    """An adapter does not answer, or not as itself."""


@dataclass(frozen=True, slots=True)
class Churned:
    """What came of it. Memory in bytes, of the engine's whole process tree."""

    requests: int
    wrong: int
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
            "errors": self.errors,
            "changes": self.changes,
            "engine_restarts": self.restarts,
            "memory_before_mib": round(self.memory_before / 2**20, 1),
            "memory_after_mib": round(self.memory_after / 2**20, 1),
            "memory_growth_percent": round(100 * growth, 2),
        }


async def churn(
    contestant: Ours, adapters: Sequence[AdapterVersion], requests: int, *, clients: int = 16, seed: int = 0
) -> Churned:
    """Ask `requests` times for adapters, spread by Zipf and held to their fingerprints, while what is served changes.

    Memory is compared with that after the first fifth, when everything has been in use once. Raises NoAnswer for an
    adapter that has no fingerprint to begin with, or shares one, and RuntimeError where memory cannot be read.
    """
    expected = {adapter.engine_name: await _answer(contestant, adapter) for adapter in adapters}
    if len(set(expected.values())) < len(expected):
        raise NoAnswer("two adapters answer alike: one could be taken for the other")
    chance = random.Random(seed)
    todo = iter(chance.choices(adapters, [1 / rank**EXPONENT for rank in range(1, len(adapters) + 1)], k=requests))
    done = wrong = errors = changes = before = 0
    restarts = contestant.engine.status.restarts

    async def client() -> None:
        nonlocal done, wrong, errors, changes, before
        for adapter in todo:
            try:
                wrong += await _answer(contestant, adapter) != expected[adapter.engine_name]
            except (ServingError, NoAnswer):
                errors += 1
            done += 1
            if done % EACH == 0:
                changes += 1
                contestant.residency.sync(chance.sample(adapters, round(SERVED_SHARE * len(adapters))))
            if done == requests // 5:
                before = memory_of(contestant.pid())

    await asyncio.gather(*(client() for _ in range(clients)))
    after = memory_of(contestant.pid())
    restarts = contestant.engine.status.restarts - restarts
    return Churned(requests, wrong, errors, changes, restarts, before, after)


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

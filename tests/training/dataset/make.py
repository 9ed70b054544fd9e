"""Cases as tests need them."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

from training.casebank import Case

START = datetime(2026, 1, 1, tzinfo=UTC)
_DRAW = random.Random(0)
_WORDS = [
    "".join(_DRAW.choice("bdfglmnprstv") + _DRAW.choice("aeiou") for _ in range(_DRAW.randint(2, 4)))
    for _ in range(5000)
]


def asked(text: str, answer: str = "yes", *, turns: tuple[str, ...] = (), at: int = 0, **fields: Any) -> Case:
    """A case whose user says `turns` and then `text`, written `at` seconds after the start."""
    messages = []
    for turn in turns:
        messages += [{"role": "user", "content": turn}, {"role": "assistant", "content": "I see."}]
    messages.append({"role": "user", "content": text})
    given: dict[str, Any] = {
        "id": f"case-{at:06}",
        "agent": "support",
        "reward": 1.0,
        "split": "train",
        "response": {"role": "assistant", "content": answer},
        "created_at": START + timedelta(seconds=at),
    }
    return Case(messages=messages, **(given | fields))


def sentence(number: int, words: int = 12) -> str:
    """A text that resembles none of another number."""
    return " ".join(random.Random(number).choices(_WORDS, k=words))


def many(count: int, start: int = 0, **fields: Any) -> list[Case]:
    """Cases that resemble each other in nothing."""
    return [asked(sentence(n), f"answer {n}", **({"at": n} | fields)) for n in range(start, start + count)]

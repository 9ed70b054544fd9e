"""A row of a dataset, and what of a case decides whether two are the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from training.casebank.case import Case, text_of
from training.casebank.duplicates import normalise, words
from training.casebank.templates import without_template

Part = Literal["train", "validation", "holdout"]
PARTS: tuple[Part, ...] = ("train", "validation", "holdout")
GENERAL = "general"
"""`task_type` of general questions that are mixed in"""
LAST_WORDS = 5
"""least words of a last message that tells a conversation by itself: "yes, please" does not"""


class Asked(Protocol):
    """What is compared: a Case or a Row."""

    @property
    def id(self) -> str:
        """Its case's id."""
        ...

    @property
    def messages(self) -> Sequence[Mapping[str, Any]]:
        """The prompt."""
        ...


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a dataset's file: the prompt, and the text to learn or to expect."""

    id: str
    messages: Sequence[Mapping[str, Any]]
    completion: str
    tools: Sequence[Any] | None
    reward: float | None
    task_type: str | None

    def line(self) -> bytes:
        """The row as it is stored and hashed: canonical JSON, one line."""
        text = json.dumps(asdict(self), ensure_ascii=False, sort_keys=True, separators=(",", ":"))
        return text.encode() + b"\n"


def row_of(case: Case, completion: str | None = None) -> Row:
    """What is learned of `case`: its target, unless another text is given. A corrected answer counts as right."""
    learned = case.target if completion is None else completion
    reward = 1.0 if case.corrected else case.reward
    return Row(case.id, case.messages, learned or "", case.tools, reward, case.task_type)


def read_rows(file: Path) -> Iterator[Row]:
    """The rows of a file, as they are asked for. Raises OSError, ValueError and TypeError for a file that is none."""
    with file.open("rb") as lines:
        for line in lines:
            yield Row(**json.loads(line))


def prompt_key(case: Case) -> bytes:
    """Equal for prompts that differ in nothing that carries meaning, system prompt and tools included."""
    said = [
        [message.get("role"), normalise(text_of(message.get("content"))), message.get("tool_calls")]
        for message in case.messages
    ]
    return _digest(json.dumps([said, case.tools], sort_keys=True, default=str))


def compared_texts(asked: Asked, template: frozenset[str] = frozenset()) -> list[str]:
    """The texts that a prompt is told by: all that the user says, and the last message where it says enough.

    System prompts are shared by tasks, and so is what `template` marks. Where no user speaks, everyone counts.
    """
    spoken = [
        without_template(text, template)
        for message in asked.messages
        if message.get("role") == "user" and (text := text_of(message.get("content"))).strip()
    ]
    if not spoken:
        spoken = [text for message in asked.messages if (text := text_of(message.get("content"))).strip()]
    texts = ["\n".join(spoken)]
    if len(spoken) > 1 and len(words(spoken[-1])) >= LAST_WORDS:
        texts.append(spoken[-1])
    return texts


def user_texts(cases: Iterable[Asked]) -> Iterator[str]:
    """Every user message of every case."""
    for case in cases:
        for message in case.messages:
            if message.get("role") == "user":
                yield text_of(message.get("content"))


def exact_keys(text: str) -> tuple[bytes, ...]:
    """Keys of which exact duplicates share one: the normal form, and the words in any order. None for a blank text."""
    singles = words(text)
    return (_digest(normalise(text)), _digest("\0" + "\0".join(sorted(singles)))) if singles else ()


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()

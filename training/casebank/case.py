"""What a case is, and what follows from its content: the text to learn, its identity, the text that is compared."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Literal

Source = Literal["served", "import", "api"]
Split = Literal["train", "holdout"]
Message = dict[str, Any]

MAX_KEY = 255
"""longest identifier that is stored as it is, in characters"""
_SYSTEM_ROLES = frozenset({"system", "developer"})
_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Case:
    """A task, the answer to it, and what is known of the answer's worth.

    `messages` is the prompt in OpenAI's form; `response` the assistant's message; `reward` is 0 to 1. `response_id` is
    the request's id and `body_id` the answer's own: feedback may name either. What the CaseBank fills in when a case is
    added (`id`, `created_at`, `content_hash`, `cluster`, `split` where none is given) may be left out before.
    `corrected` tells that feedback gave another text than the answer's; `repeat_of` names the case that is learned from
    in place of this one, whose content is the same.
    """

    messages: Sequence[Message]
    agent: str | None = None
    response: Message | None = None
    id: str = ""
    created_at: datetime | None = None
    source: Source = "api"
    owner: str | None = None
    response_id: str | None = None
    body_id: str | None = None
    episode: str | None = None
    session: str | None = None
    user: str | None = None
    task_type: str | None = None
    tools: Sequence[Any] | None = None
    adapter: str | None = None
    base: str | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    correction: str | None = None
    label: str | None = None
    corrected: bool = False
    reward: float | None = None
    reward_source: str | None = None
    rewarded_at: datetime | None = None
    reason: str | None = None
    difficulty: float | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    latency_s: float | None = None
    content_hash: str = ""
    cluster: str = ""
    split: Split | None = None
    import_id: str | None = None
    repeat_of: str | None = None

    @property
    def target(self) -> str | None:
        """The text to learn: the correction, else the label, else the answer's; None where there is none."""
        if self.correction is not None:
            return self.correction
        return self.label if self.label is not None else self.answer

    @property
    def answer(self) -> str | None:
        """The text of `response`."""
        return None if self.response is None else text_of(self.response.get("content")) or None

    @property
    def prompt_text(self) -> str:
        """What near duplicates are told by: the text of all messages but system prompts, which tasks share."""
        return "\n".join(
            text_of(message.get("content")) for message in self.messages if message.get("role") not in _SYSTEM_ROLES
        )


FIELDS = tuple(spec.name for spec in fields(Case))


def text_of(content: object) -> str:
    """The text of a message's content: a string, or a list of parts of which those with text count."""
    if isinstance(content, str):
        return content
    if not isinstance(content, Iterable):
        return ""
    parts = [part.get("text") if isinstance(part, Mapping) else part for part in content]
    return "\n".join(part for part in parts if isinstance(part, str))


def content_hash(case: Case) -> str:
    """SHA-256 of prompt, tools and the answer to learn, as 64 hex digits: equal for cases that teach the same."""
    response = case.response or {}
    calls = response.get("tool_calls") if case.correction is None and case.label is None else None
    learned = [list(case.messages), case.tools, case.target, calls]
    return hashlib.sha256(json.dumps(learned, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def draw_split(key: str, holdout_share: float) -> Split:
    """The side that `key` (an episode, or the first text of a cluster) falls on, the same everywhere and for good."""
    drawn = int.from_bytes(hashlib.sha256(f"split\0{key}".encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return "holdout" if drawn < holdout_share * 2**64 else "train"


def storable(text: str) -> str:
    """`text` without what no database stores: NUL and lone surrogates become U+FFFD."""
    return _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", text)


def storable_key(text: str | None) -> str | None:
    """An identifier as it is stored and looked for: of one too long, the hash."""
    if not text:
        return None
    if len(text) > MAX_KEY:
        return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return storable(text)


def storable_json(value: Any) -> Any:
    """`value` with every string in it made storable."""
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, Mapping):
        return {storable(str(key)): storable_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [storable_json(each) for each in value]
    return value

"""The task: all that the router looks at of a request, taken from the parsed body once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from router.features import excerpt
from router.utility import CHARS_PER_TOKEN, NO_WISHES, Wishes

_SYSTEM_ROLES = frozenset({"system", "developer"})
_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Task:
    """One request, as routing sees it.

    `text` is an excerpt of the last user turn, bounded by `features.MAX_CHARS`; `chars` is the length of the whole.
    `prompt_chars` is the length of all messages. `agent` is the hint of a header or of metadata. `owner` is whoever
    the session belongs to (an API key's id): sessions of two owners never meet. `wishes` are the request's and its
    key's, `max_tokens` its limit of the answer.
    """

    model: str
    text: str
    chars: int
    prompt_chars: int = 0
    turns: int = 1
    media: int = 0
    has_tools: bool = False
    has_system: bool = False
    agent: str | None = None
    session: str = ""
    session_given: bool = False
    """whether the client named the session; otherwise it is a hash of the first messages"""
    owner: str = ""
    continues: bool = False
    """whether the conversation has begun before: a second turn, or an answer or a tool's result among the messages"""
    wishes: Wishes = NO_WISHES
    max_tokens: int | None = None

    @property
    def session_key(self) -> tuple[str, str]:
        """Key of the caller's session memory."""
        return (self.owner, self.session)

    @classmethod
    def from_messages(
        cls,
        messages: Sequence[Mapping[str, Any]] | str,
        *,
        model: str = "auto",
        instructions: str | None = None,
        has_tools: bool = False,
        agent: str | None = None,
        session: str | None = None,
        owner: str = "",
        wishes: Wishes = NO_WISHES,
        max_tokens: int | None = None,
    ) -> Task:
        """From chat messages, or from the `input` (and `instructions`) of the Responses API.

        Parts of a content list that hold text count as text, others as media. Whatever else a message holds is
        ignored: telling the client what is wrong with it is the engine's part.
        """
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        system = instructions or ""
        first = last = ""
        turns = media = 0
        chars = len(system)
        continues = False
        for message in messages:
            if not isinstance(message, Mapping):
                continue
            role = message.get("role")
            said, others = _content(message.get("content"))
            chars += len(said)
            if role == "user":
                last = said
                media += others
                turns += 1
                first = first if turns > 1 else last
            elif role in _SYSTEM_ROLES:
                system += "" if turns else said
            else:
                continues = True
        return cls(
            model=model,
            text=excerpt(last),
            chars=len(last),
            prompt_chars=chars,
            turns=max(turns, 1),
            media=media,
            has_tools=has_tools,
            has_system=bool(system),
            agent=agent,
            session=session or _fingerprint(system, first),
            session_given=bool(session),
            owner=owner,
            continues=continues or turns > 1,
            wishes=wishes,
            max_tokens=max_tokens,
        )

    @classmethod
    def from_prompt(
        cls,
        prompt: str | Sequence[Any],
        *,
        model: str = "auto",
        agent: str | None = None,
        session: str | None = None,
        owner: str = "",
        wishes: Wishes = NO_WISHES,
        max_tokens: int | None = None,
    ) -> Task:
        """From the `prompt` of a completion or the `input` of an embedding: text, token ids, or a list of either."""
        text, ids = (prompt, 0) if isinstance(prompt, str) else _first_prompt(prompt)
        return cls(
            model=model,
            text=excerpt(text),
            chars=len(text) + CHARS_PER_TOKEN * ids,
            prompt_chars=len(text) + CHARS_PER_TOKEN * ids,
            agent=agent,
            session=session or _fingerprint("", text),
            session_given=bool(session),
            owner=owner,
            wishes=wishes,
            max_tokens=max_tokens,
        )


def _content(content: object) -> tuple[str, int]:
    """Text and number of other parts of a message's content."""
    if isinstance(content, str):
        return content, 0
    if not isinstance(content, list):
        return "", 0
    texts, others = [], 0
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(part["text"])
        else:
            others += 1
    return "\n".join(texts), others


def _first_prompt(prompt: Sequence[Any]) -> tuple[str, int]:
    """Text of the first prompt of a batch, or the number of its token ids."""
    first = prompt[0] if prompt else ""
    if isinstance(first, str):
        return first, 0
    return "", len(first) if isinstance(first, list) else len(prompt)


def _fingerprint(system: str, first: str) -> str:
    """Stable id of a conversation: hash of its system prompt and first user turn (of their excerpts and lengths)."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    for text in (system, first):
        digest.update(f"{len(text)}:".encode())
        digest.update(excerpt(text).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()

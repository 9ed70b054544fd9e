"""Conversations in other shapes than OpenAI's: checked on the way in, written on the way out."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from training.casebank.case import Message, text_of
from training.casebank.errors import CaseInvalid

ROLES = frozenset({"system", "developer", "user", "assistant", "tool", "function"})
_SPEAKERS = {
    **dict.fromkeys(("human", "user", "prompter", "instruction"), "user"),
    **dict.fromkeys(("gpt", "assistant", "chatgpt", "bot", "model", "bard", "claude", "bing"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function_response", "tool_response"), "tool"),
    "system": "system",
}
_SHOWN = {"user": "human", "assistant": "gpt", "system": "system", "developer": "system", "tool": "tool"}
_CHATML = re.compile(r"<\|im_start\|>\s*(\w+)[^\n]*\n(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL)


def from_messages(value: Any) -> list[Message]:
    """A conversation in OpenAI's shape, checked. Raises CaseInvalid."""
    if not isinstance(value, list) or not value:
        raise CaseInvalid("'messages' must be a list with something in it", param="messages")
    return [_checked(message, at) for at, message in enumerate(value)]


def _checked(message: Any, at: int) -> Message:
    if not isinstance(message, dict):
        raise CaseInvalid(f"message {at} is no object", param=f"messages.{at}")
    if message.get("role") not in ROLES:
        raise CaseInvalid(f"message {at} has role {message.get('role')!r}", param=f"messages.{at}.role")
    content = message.get("content")
    if content is not None and not isinstance(content, (str, list)):
        raise CaseInvalid(f"the content of message {at} must be text or parts", param=f"messages.{at}.content")
    if content is None and not message.get("tool_calls") and not message.get("function_call"):
        raise CaseInvalid(f"message {at} has no content", param=f"messages.{at}.content")
    if message.get("weight") not in (None, 0, 1):
        raise CaseInvalid(f"the weight of message {at} must be 0 or 1", param=f"messages.{at}.weight")
    return message


def from_sharegpt(value: Any, system: str | None = None) -> list[Message]:
    """Turns of `from` and `value`, as ShareGPT has them. Raises CaseInvalid."""
    if not isinstance(value, list) or not value:
        raise CaseInvalid("'conversations' must be a list with something in it", param="conversations")
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for at, turn in enumerate(value):
        if not isinstance(turn, dict):
            raise CaseInvalid(f"turn {at} is no object", param=f"conversations.{at}")
        speaker, said = turn.get("from", turn.get("role")), turn.get("value", turn.get("content"))
        role = _SPEAKERS.get(str(speaker).lower())
        if role is None:
            raise CaseInvalid(f"turn {at} is from {speaker!r}", param=f"conversations.{at}.from")
        if not isinstance(said, str):
            raise CaseInvalid(f"turn {at} says nothing", param=f"conversations.{at}.value")
        weight = {"weight": turn["weight"]} if turn.get("weight") in (0, 1) else {}
        messages.append({"role": role, "content": said} | weight)
    return messages


def to_sharegpt(messages: Sequence[Message]) -> dict[str, Any]:
    """The same the other way. Raises CaseInvalid for tool calls, which ShareGPT has no place for."""
    return {"conversations": [_turn(message) for message in messages]}


def _turn(message: Message) -> dict[str, Any]:
    weight = {"weight": message["weight"]} if "weight" in message else {}
    return {"from": _SHOWN[_plain(message)], "value": text_of(message.get("content"))} | weight


def from_chatml(text: str) -> list[Message]:
    """A conversation between `<|im_start|>` and `<|im_end|>`. Raises CaseInvalid."""
    messages: list[Message] = []
    for role, content in _CHATML.findall(text):
        known = _SPEAKERS.get(role.lower())
        if known is None:
            raise CaseInvalid(f"'{role}' is no role", param="text")
        messages.append({"role": known, "content": content.strip("\n")})
    if not messages:
        raise CaseInvalid("no <|im_start|> in it", param="text")
    if messages[-1]["role"] == "assistant" and not messages[-1]["content"].strip():
        messages.pop()  # the prompt for the next answer, which templates leave at the end
    return messages


def to_chatml(messages: Sequence[Message]) -> str:
    """The same the other way. Raises CaseInvalid for tool calls."""
    return "".join(
        f"<|im_start|>{_plain(message)}\n{text_of(message.get('content'))}<|im_end|>\n" for message in messages
    )


def _plain(message: Message) -> str:
    role = message.get("role")
    if role not in _SHOWN or message.get("tool_calls"):
        raise CaseInvalid(f"a message of {json.dumps(role)} with calls fits format messages only")
    return str(role)

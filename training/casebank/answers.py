"""Answers of the engine as one assistant message each: whole bodies, and streams of server-sent events put together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from training.casebank.case import Message, text_of


@dataclass(frozen=True, slots=True)
class Answer:
    """The first choice of an answer, and the answer's own id."""

    id: str | None
    message: Message
    finish_reason: str | None = None


def read_answer(path: str, body: bytes) -> Answer | None:
    """The answer in a whole body; None where it holds none."""
    document = json.loads(body)
    if path == "/v1/responses":
        return _of_response(document)
    if not document["choices"]:
        return None
    choice = document["choices"][0]
    message = choice.get("message") or {"content": choice.get("text") or ""}
    return Answer(document.get("id"), _plain(message), choice.get("finish_reason"))


def read_stream(path: str, body: bytes) -> Answer | None:
    """The answer that the events of a stream make together; None where they hold none."""
    if path == "/v1/responses":
        whole = [event["response"] for event in _events(body) if event.get("type") == "response.completed"]
        return _of_response(whole[-1]) if whole else None
    assembly = _Assembly()
    for event in _events(body):
        assembly.add(event)
    return assembly.answer()


class _Assembly:
    """A chat or completion stream, piece by piece. Only the choice with index 0 is kept."""

    def __init__(self) -> None:
        self._id: str | None = None
        self._texts: dict[str, list[str]] = {}
        self._calls: dict[int, dict[str, Any]] = {}
        self._finish_reason: str | None = None
        self._any = False

    def add(self, event: Mapping[str, Any]) -> None:
        self._id = self._id or event.get("id")
        for choice in event.get("choices") or ():
            if choice.get("index", 0) == 0:
                self._any = True
                self._finish_reason = choice.get("finish_reason") or self._finish_reason
                self._add_delta(choice.get("delta") or {"content": choice.get("text")})

    def _add_delta(self, delta: Mapping[str, Any]) -> None:
        for name, piece in delta.items():
            if name == "tool_calls":
                for call in piece or ():
                    self._add_call(call)
            elif name != "role" and isinstance(piece, str):
                self._texts.setdefault(name, []).append(piece)

    def _add_call(self, call: Mapping[str, Any]) -> None:
        kept = self._calls.setdefault(
            call.get("index", 0), {"id": None, "type": "function", "function": {"name": "", "arguments": ""}}
        )
        kept["id"] = kept["id"] or call.get("id")
        function = call.get("function") or {}
        kept["function"]["name"] = kept["function"]["name"] or function.get("name") or ""
        kept["function"]["arguments"] += function.get("arguments") or ""

    def answer(self) -> Answer | None:
        if not self._any:
            return None
        message: Message = {name: "".join(pieces) for name, pieces in self._texts.items()}
        message["tool_calls"] = [self._calls[index] for index in sorted(self._calls)]
        return Answer(self._id, _plain(message), self._finish_reason)


def _plain(message: Mapping[str, Any]) -> Message:
    """The message with its role first, and without fields that say nothing."""
    told = {name: value for name, value in message.items() if value not in (None, [], {}) and name != "role"}
    return {"role": "assistant", "content": told.pop("content", "" if not told.get("tool_calls") else None), **told}


def _of_response(document: Mapping[str, Any]) -> Answer | None:
    """An answer of the Responses API: the text of its messages, and its function calls."""
    texts, calls = [], []
    for item in document.get("output") or ():
        if item.get("type") == "message":
            texts.append(text_of(item.get("content")))
        elif item.get("type") == "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            calls.append({"id": item.get("call_id"), "type": "function", "function": function})
    if not texts and not calls:
        return None
    return Answer(
        document.get("id"), _plain({"content": "\n".join(texts), "tool_calls": calls}), document.get("status")
    )


def _events(body: bytes) -> Iterator[dict[str, Any]]:
    """The JSON objects that a stream's events carry."""
    for event in body.replace(b"\r\n", b"\n").split(b"\n\n"):
        data = b"\n".join(line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:"))
        if data and data != b"[DONE]":
            parsed = json.loads(data)
            if isinstance(parsed, dict):
                yield parsed

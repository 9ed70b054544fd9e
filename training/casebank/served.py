"""From served requests to cases: messages, an answer, and the name of the conversation that it is a turn of.

Requests that failed, broke off or asked for embeddings become none.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from training.casebank.answers import Answer, read_answer, read_stream
from training.casebank.case import Case, Message, text_of

log = logging.getLogger(__name__)

SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "seed", "stop", "n", "max_tokens", "max_completion_tokens",
    "max_output_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias",
    "response_format", "tool_choice", "parallel_tool_calls", "chat_template_kwargs", "reasoning_effort", "guided_json",
)  # fmt: skip
"""what of a request decides how its answer is drawn"""
_TASK_TYPES = {"/v1/chat/completions": "chat", "/v1/completions": "completion", "/v1/responses": "chat"}


class Served(msgspec.Struct, frozen=True):
    """One served request, field for field as `serving.recorder.Outcome` has it, which this layer may not import."""

    request_id: str
    path: str
    caller: str
    agent: str | None
    session: str | None
    adapter: str | None
    base: str
    reason: str
    difficulty: float
    status: int
    request: bytes
    response: bytes | None
    streamed: bool
    prompt_tokens: int | None
    completion_tokens: int | None
    started_at: float
    latency_s: float
    metadata: dict[str, Any]


def case_of(served: Served) -> Case | None:
    """The case of a request; None for one that failed, and for an answer that is empty or cannot be read."""
    if served.status != 200 or not served.response or served.path not in _TASK_TYPES:
        return None
    try:
        request = json.loads(served.request)
        messages = _messages(served.path, request)
        answer = (read_stream if served.streamed else read_answer)(served.path, served.response)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # an engine may answer in any shape, and one such answer must not cost the others
        log.warning("request %s is not recorded: %s: %s", served.request_id, type(error).__name__, error)
        return None
    if messages is None or answer is None or not (answer.message.get("content") or answer.message.get("tool_calls")):
        return None
    return _case(served, request, messages, answer)


def body_id_of(response: bytes) -> str | None:
    """The id that an answer, whole or streamed, gives itself; None where it gives none. Reads the first event only."""
    data = response
    if match := _FIRST_DATA.search(response):
        data = match[1]
    try:
        told = _decode_ids(data)
    except msgspec.DecodeError:
        return None
    return told.id or (told.response.id if told.response else None)


class _Ids(msgspec.Struct):
    id: str | None = None
    response: _Ids | None = None


_decode_ids = msgspec.json.Decoder(_Ids).decode
_FIRST_DATA = re.compile(rb"^data: ?(\{.*)$", re.MULTILINE)


def _case(served: Served, request: Mapping[str, Any], messages: list[Message], answer: Answer) -> Case:
    metadata = served.metadata
    return Case(
        messages=messages,
        agent=served.agent,
        response=answer.message,
        created_at=datetime.fromtimestamp(served.started_at, UTC),
        source="served",
        owner=served.caller,
        response_id=served.request_id,
        body_id=answer.id,
        episode=_text(metadata.get("episode_id")) or _episode(served, messages, answer),
        session=served.session,
        user=_text(request.get("user")) or _text(request.get("safety_identifier")) or _text(metadata.get("user_id")),
        task_type=_text(metadata.get("task_type")) or _TASK_TYPES[served.path],
        tools=request.get("tools") or None,
        adapter=served.adapter,
        base=served.base,
        sampling=_sampling(request) | ({"finish_reason": answer.finish_reason} if answer.finish_reason else {}),
        reason=served.reason,
        difficulty=served.difficulty,
        prompt_tokens=served.prompt_tokens,
        completion_tokens=served.completion_tokens,
        latency_s=served.latency_s,
    )


def _messages(path: str, request: Mapping[str, Any]) -> list[Message] | None:
    if path == "/v1/chat/completions":
        return list(request["messages"])
    if path == "/v1/responses":
        return _of_responses(request)
    prompt = request["prompt"]
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else None


def _of_responses(request: Mapping[str, Any]) -> list[Message]:
    """`instructions` and `input` of the Responses API as chat messages."""
    said, given = [], request["input"]
    if isinstance(request.get("instructions"), str):
        said.append({"role": "system", "content": request["instructions"]})
    for item in [{"role": "user", "content": given}] if isinstance(given, str) else given:
        kind = item.get("type", "message")
        if kind == "message":
            said.append({"role": item["role"], "content": text_of(item.get("content"))})
        elif kind == "function_call":
            function = {"name": item["name"], "arguments": item["arguments"]}
            call = {"id": item.get("call_id"), "type": "function", "function": function}
            said.append({"role": "assistant", "content": None, "tool_calls": [call]})
        elif kind == "function_call_output":
            said.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text_of(item.get("output"))})
    return said


def _sampling(request: Mapping[str, Any]) -> dict[str, Any]:
    return {name: request[name] for name in SAMPLING if request.get(name) is not None}


def _episode(served: Served, messages: Sequence[Message], answer: Answer) -> str:
    """The conversation that a request is a turn of: whose it is, and how it began, up to its first answer.

    A client sends that beginning again with each turn; tasks that only share a session begin in other ways.
    """
    first = next((at for at, message in enumerate(messages) if message.get("role") == "assistant"), len(messages))
    opening = [text_of(message.get("content")) for message in messages[: first + 1]]
    if first == len(messages):
        opening.append(text_of(answer.message.get("content")))
    told = json.dumps([served.caller, served.agent, served.session, *opening])
    return "served:" + hashlib.sha256(told.encode()).hexdigest()[:40]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None

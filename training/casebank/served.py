"""From served requests to cases: what the recorder hands over becomes messages, an answer, and the conversation's name.

Requests that failed, broke off or asked for embeddings become none.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from training.casebank.answers import Answer, read_answer, read_stream
from training.casebank.bank import CaseBank
from training.casebank.case import Case, Message, text_of
from training.casebank.errors import CaseInvalid

log = logging.getLogger(__name__)

SAMPLING = (
    "temperature", "top_p", "top_k", "min_p", "seed", "stop", "n", "max_tokens", "max_completion_tokens",
    "max_output_tokens", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias",
    "response_format", "tool_choice", "parallel_tool_calls", "chat_template_kwargs", "reasoning_effort", "guided_json",
)  # fmt: skip
"""what of a request decides how its answer is drawn"""
_TASK_TYPES = {"/v1/chat/completions": "chat", "/v1/completions": "completion", "/v1/responses": "chat"}


Served = Any
"""an outcome as `serving.recorder.Outcome` has it, which this layer may not import"""


class OutcomeSink:
    """The recorder's sink: what was served, into the CaseBank."""

    def __init__(self, bank: CaseBank) -> None:
        self._bank = bank

    def write(self, outcomes: Sequence[Served]) -> None:
        """Store the cases of `outcomes` in one transaction; what cannot be read is told in the log."""
        cases = []
        for outcome in outcomes:
            try:
                case = case_of(outcome)
            except (CaseInvalid, ValueError, KeyError, TypeError, AttributeError) as error:
                # an engine may answer in any shape, and one such answer must not cost the batch
                log.warning("request %s is not recorded: %s", outcome.request_id, error)
                continue
            if case is not None:
                cases.append(case)
        if cases:
            self._bank.add(cases)


def case_of(outcome: Served) -> Case | None:
    """The case of a served request; None for one that failed, and for a kind of which nothing is learned."""
    if outcome.status >= 400 or outcome.response is None or outcome.path not in _TASK_TYPES:
        return None
    request = json.loads(outcome.request)
    messages = _messages(outcome.path, request)
    answer = (read_stream if outcome.streamed else read_answer)(outcome.path, outcome.response)
    if messages is None or answer is None:
        return None
    metadata = outcome.metadata
    return Case(
        messages=messages,
        agent=outcome.agent,
        response=answer.message,
        created_at=datetime.fromtimestamp(outcome.started_at, UTC),
        source="served",
        owner=outcome.caller,
        response_id=outcome.request_id,
        body_id=answer.id,
        episode=_text(metadata.get("episode")) or _episode(outcome, messages, answer),
        session=outcome.session,
        user=_text(request.get("user")) or _text(request.get("safety_identifier")) or _text(metadata.get("user_id")),
        task_type=_text(metadata.get("task_type")) or _TASK_TYPES[outcome.path],
        tools=request.get("tools") or None,
        adapter=outcome.adapter,
        base=outcome.base,
        sampling=_sampling(request) | ({"finish_reason": answer.finish_reason} if answer.finish_reason else {}),
        reason=outcome.reason,
        difficulty=outcome.difficulty,
        prompt_tokens=outcome.prompt_tokens,
        completion_tokens=outcome.completion_tokens,
        latency_s=outcome.latency_s,
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


def _episode(outcome: Served, messages: Sequence[Message], answer: Answer) -> str:
    """The conversation that a request is a turn of: whose it is, and how it began, up to its first answer.

    A client sends that beginning again with each turn; tasks that only share a session begin in other ways.
    """
    first = next((at for at, message in enumerate(messages) if message.get("role") == "assistant"), len(messages))
    opening = [text_of(message.get("content")) for message in messages[: first + 1]]
    if first == len(messages):
        opening.append(text_of(answer.message.get("content")))
    told = json.dumps([outcome.caller, outcome.agent, outcome.session, *opening])
    return "served:" + hashlib.sha256(told.encode()).hexdigest()[:40]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None

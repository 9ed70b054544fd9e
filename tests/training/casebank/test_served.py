"""What passed through the gateway becomes a case: whole answers, streams, and the three kinds of request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from training.casebank.served import Served, body_id_of, case_of

TASK = {"role": "user", "content": "Where is my order?"}


def served(request: Any, response: Any, *, path: str = "/v1/chat/completions", **more: Any) -> Served:
    fields: dict[str, Any] = {
        "request_id": "req_1", "path": path, "caller": "alice", "agent": "support", "session": "s1",
        "adapter": "support-agent@0123456789ab", "base": "tiny", "reason": "champion", "difficulty": 0.25,
        "status": 200,
        "request": json.dumps(request).encode(),
        "response": response if isinstance(response, bytes) else json.dumps(response).encode(),
        "streamed": isinstance(response, bytes), "prompt_tokens": 7, "completion_tokens": 3,
        "started_at": 1_700_000_000.0, "latency_s": 0.5, "metadata": {},
    }  # fmt: skip
    return Served(**fields | more)


def stream(*events: Any) -> bytes:
    return b"".join(b"data: %s\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"


def chunk(**delta: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "choices": [{"index": 0, "delta": delta}]}


def test_a_chat_becomes_a_case_with_all_that_is_known_of_it() -> None:
    request = {"model": "auto", "messages": [TASK], "temperature": 0.1, "user": "u1", "stream": False}
    answer = {
        "id": "chatcmpl-1",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "track", "refusal": None}}],
    }
    case = case_of(served(request, answer, metadata={"task_type": "intent", "episode_id": "e1"}))
    assert case is not None
    assert (case.messages, case.response) == ([TASK], {"role": "assistant", "content": "track"})
    assert (case.response_id, case.body_id, case.owner) == ("req_1", "chatcmpl-1", "alice")
    assert (case.agent, case.session, case.user, case.episode, case.task_type) == (
        "support",
        "s1",
        "u1",
        "e1",
        "intent",
    )
    assert (case.sampling, case.source, case.reason, case.difficulty) == (
        {"temperature": 0.1},
        "served",
        "champion",
        0.25,
    )
    assert (case.adapter, case.base) == ("support-agent@0123456789ab", "tiny")
    assert (case.prompt_tokens, case.completion_tokens, case.latency_s) == (7, 3, 0.5)
    assert case.created_at is not None and case.created_at.timestamp() == 1_700_000_000.0
    assert case.reward is None


def test_a_stream_is_put_together() -> None:
    told = stream(chunk(role="assistant", content=""), chunk(content="tr"), chunk(content="ack"), {"choices": []})
    case = case_of(served({"messages": [TASK], "stream": True}, told))
    assert case is not None
    assert (case.answer, case.body_id) == ("track", "chatcmpl-1")


def test_streamed_tool_calls_are_put_together_by_their_index() -> None:
    told = stream(
        chunk(tool_calls=[{"index": 0, "id": "a", "type": "function", "function": {"name": "f", "arguments": ""}}]),
        chunk(tool_calls=[{"index": 1, "id": "b", "type": "function", "function": {"name": "g", "arguments": "{"}}]),
        chunk(
            tool_calls=[
                {"index": 0, "function": {"arguments": '{"x":1}'}},
                {"index": 1, "function": {"arguments": "}"}},
            ]
        ),
    )
    case = case_of(served({"messages": [TASK], "tools": [{"type": "function"}]}, told))
    assert case is not None and case.response is not None
    assert case.response["content"] is None
    assert [(call["id"], call["function"]) for call in case.response["tool_calls"]] == [
        ("a", {"name": "f", "arguments": '{"x":1}'}),
        ("b", {"name": "g", "arguments": "{}"}),
    ]
    assert case.tools == [{"type": "function"}]


@pytest.mark.parametrize("prompt", ["Once", ["Once"]])
def test_a_completion_is_a_case(prompt: object) -> None:
    answer = {"id": "cmpl-1", "choices": [{"index": 0, "text": " upon a time"}]}
    case = case_of(served({"prompt": prompt}, answer, path="/v1/completions"))
    assert case is not None
    assert (case.messages, case.answer) == ([{"role": "user", "content": "Once"}], " upon a time")


def test_the_responses_api_is_read_whole_and_streamed() -> None:
    answer = {
        "id": "resp_1",
        "object": "response",
        "output": [
            {"type": "reasoning", "content": []},
            {"type": "message", "content": [{"type": "output_text", "text": "track"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        ],
    }
    request = {
        "instructions": "Be short.",
        "input": [{"role": "user", "content": [{"type": "input_text", "text": "Hi"}]}],
    }
    told = b"event: x\n" + stream({"type": "response.created", "response": {"id": "resp_1"}},
                                  {"type": "response.completed", "response": answer})  # fmt: skip
    for each in (answer, told):
        case = case_of(served(request, each, path="/v1/responses"))
        assert case is not None and case.response is not None
        assert case.messages == [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
        assert (case.answer, case.body_id) == ("track", "resp_1")
        assert case.response["tool_calls"][0]["function"] == {"name": "f", "arguments": "{}"}


@pytest.mark.parametrize(
    ("request_body", "response", "more"),
    [
        ({"input": "x"}, {"data": []}, {"path": "/v1/embeddings"}),
        ({"prompt": [1, 2, 3]}, {"id": "c", "choices": [{"text": "x"}]}, {"path": "/v1/completions"}),
        ({"messages": [TASK]}, {"choices": [{"message": {"role": "assistant", "content": ""}}]}, {}),
        ({"messages": [TASK]}, {"choices": []}, {}),
        ({"messages": [TASK]}, b"data: {broken\n\n", {}),
        ({"messages": [TASK]}, {"error": {}}, {"status": 400}),
        ({"messages": [TASK]}, {"choices": [None]}, {}),
        ([], {"id": "c"}, {}),
    ],
)
def test_what_teaches_nothing_is_no_case(request_body: Any, response: Any, more: dict[str, Any]) -> None:
    assert case_of(served(request_body, response, **more)) is None


def test_the_id_in_an_answer_is_found_without_reading_all_of_it() -> None:
    assert body_id_of(b'{"object":"x","id":"chatcmpl-1","choices":[]}') == "chatcmpl-1"
    assert body_id_of(stream(chunk(content="a"), chunk(content="b"))) == "chatcmpl-1"
    assert body_id_of(b'event: response.created\ndata: {"type":"x","response":{"id":"resp_1"}}\n\n') == "resp_1"
    assert [body_id_of(broken) for broken in (b"", b"data: ", b"data: {\n\n", b"[1]", b'{"id":1}')] == [None] * 5

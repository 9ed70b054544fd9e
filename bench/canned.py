"""The mock upstream's answers: bytes laid out once per model, shaped as vLLM writes them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

STREAM_CHUNKS = 64
"""content events of a streamed answer, unless told otherwise"""
TOKEN_MARK = b" beat"
"""occurs once in the text of each content event, however a proxy re-encodes it, and nowhere else"""
MAX_MODEL_LEN = 32_768
CREATED = 1_760_000_000
PROMPT_TOKENS = 80

STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, and its stream as HTTP chunks; `usage` goes before the last chunk where it was asked for."""

    whole: bytes
    chunks: tuple[bytes, ...]
    usage: bytes
    last: bytes


def response(status: str, body: bytes, content_type: str = "application/json") -> bytes:
    """A complete HTTP response; `status` is as `200 OK`."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: {content_type}\r\ncontent-length: {len(body)}\r\n\r\n"
    return head.encode() + body


def error(status: str, kind: str, message: str) -> bytes:
    """An error as vLLM words it."""
    body = {"error": {"message": message, "type": kind, "param": None, "code": int(status[:3])}}
    return response(status, _encode(body))


def chat_answer(model: str, tokens: int = STREAM_CHUNKS) -> Answer:
    """The answer of `/v1/chat/completions`, an event for each token."""
    frame = {"id": f"chatcmpl-{0:032x}", "object": "chat.completion.chunk", "created": CREATED, "model": model}

    def choice(index: int) -> dict[str, Any]:
        delta = ({"role": "assistant"} if index == 0 else {}) | {"content": _token(index)}
        return {
            "index": 0,
            "delta": delta,
            "logprobs": None,
            "finish_reason": _finish(index, tokens),
            "token_ids": None,
        }

    message: dict[str, Any] = {
        "role": "assistant",
        "content": _text(tokens),
        "refusal": None,
        "tool_calls": [],
        "reasoning": None,
    }
    return _answer(frame, "chat.completion", choice, {"index": 0, "message": message}, tokens)


def text_answer(model: str, tokens: int = STREAM_CHUNKS) -> Answer:
    """The answer of `/v1/completions`, an event for each token."""
    frame = {"id": f"cmpl-{0:032x}", "object": "text_completion", "created": CREATED, "model": model}

    def choice(index: int) -> dict[str, Any]:
        return {"index": 0, "text": _token(index), "logprobs": None, "finish_reason": _finish(index, tokens)}

    return _answer(frame, "text_completion", choice, {"index": 0, "text": _text(tokens)}, tokens)


def _answer(frame: dict[str, Any], whole_object: str, choice: Any, whole_choice: dict[str, Any], tokens: int) -> Answer:
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "total_tokens": PROMPT_TOKENS + tokens,
        "completion_tokens": tokens,
        "prompt_tokens_details": None,
    }
    closing = {"logprobs": None, "finish_reason": "stop", "stop_reason": None}
    whole = frame | {"object": whole_object, "choices": [whole_choice | closing], "usage": usage}
    return Answer(
        whole=response("200 OK", _encode(whole)),
        chunks=tuple(_event(frame | {"choices": [choice(index)]}) for index in range(tokens)),
        usage=_event(frame | {"choices": [], "usage": usage}),
        last=_http_chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n",
    )


def _token(index: int) -> str:
    return f"{TOKEN_MARK.decode()}{index:02d}"


def _text(tokens: int) -> str:
    return "".join(map(_token, range(tokens)))


def _finish(index: int, tokens: int) -> str | None:
    return "stop" if index == tokens - 1 else None


def _event(payload: dict[str, Any]) -> bytes:
    return _http_chunk(b"data: " + _encode(payload) + b"\n\n")


def _http_chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def _encode(payload: dict[str, Any]) -> bytes:
    return json.dumps(payload, separators=(",", ":")).encode()

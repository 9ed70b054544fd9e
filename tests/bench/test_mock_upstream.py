import asyncio
import json
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from bench.canned import MAX_MODEL_LEN, STREAM_CHUNKS
from bench.mock_upstream import BASE
from tests.bench.conftest import StartMock

MESSAGES: list[Any] = [{"role": "user", "content": "hello"}]


def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)


def test_official_client_gets_whole_and_streamed_chat_answers(mock: str) -> None:
    with client(mock) as api:
        whole = api.chat.completions.create(model=BASE, messages=MESSAGES)
        assert whole.model == BASE
        assert whole.choices[0].finish_reason == "stop"
        assert whole.usage
        assert whole.usage.completion_tokens == STREAM_CHUNKS
        chunks = list(api.chat.completions.create(model=BASE, messages=MESSAGES, stream=True))
    assert len(chunks) == STREAM_CHUNKS
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None] * (STREAM_CHUNKS - 1) + ["stop"]


def test_stream_ends_with_usage_only_for_those_who_asked(mock: str) -> None:
    with client(mock) as api:
        options: Any = {"include_usage": True}
        *chunks, last = api.chat.completions.create(model=BASE, messages=MESSAGES, stream=True, stream_options=options)
    assert len(chunks) == STREAM_CHUNKS
    assert last.choices == []
    assert last.usage
    assert last.usage.completion_tokens == STREAM_CHUNKS


def test_text_completions_are_answered_too(mock: str) -> None:
    with client(mock) as api:
        whole = api.completions.create(model=BASE, prompt="hello")
        streamed = list(api.completions.create(model=BASE, prompt="hello", stream=True))
    assert "".join(chunk.choices[0].text for chunk in streamed) == whole.choices[0].text


def test_each_token_is_an_event_and_an_http_chunk_of_its_own(start_mock: StartMock) -> None:
    url = start_mock("--chunk-delay-ms", "2")
    body = {"model": BASE, "messages": MESSAGES, "stream": True}
    with httpx.stream("POST", f"{url}/v1/chat/completions", json=body) as answer:
        pieces = list(answer.iter_raw())
    assert len(pieces) >= STREAM_CHUNKS
    events = b"".join(pieces).split(b"\n\n")
    assert events[-2:] == [b"data: [DONE]", b""]
    for event in events[:-2]:
        assert json.loads(event.removeprefix(b"data: "))["choices"]


def test_adapters_are_loaded_served_and_unloaded_as_by_vllm(mock: str) -> None:
    lora = {"lora_name": "a@1", "lora_path": "/somewhere"}
    ask = {"model": "a@1", "messages": MESSAGES}
    with httpx.Client(base_url=mock) as http:
        assert http.post("/v1/chat/completions", json=ask).status_code == 404
        assert http.post("/v1/load_lora_adapter", json=lora).status_code == 200
        again = http.post("/v1/load_lora_adapter", json=lora)
        assert (again.status_code, "already been loaded" in again.text) == (400, True)
        assert http.post("/v1/chat/completions", json=ask).json()["model"] == "a@1"
        base, adapter = http.get("/v1/models").json()["data"]
        assert (base["id"], base["max_model_len"], adapter["id"], adapter["parent"]) == (
            BASE,
            MAX_MODEL_LEN,
            "a@1",
            BASE,
        )
        assert http.post("/v1/unload_lora_adapter", json=lora).status_code == 200
        assert http.post("/v1/unload_lora_adapter", json=lora).status_code == 404
        assert http.post("/v1/chat/completions", json=ask).status_code == 404


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"model": 7}', b'{"stream": "yes"}'])
def test_malformed_bodies_are_refused_and_the_connection_lives(mock: str, body: bytes) -> None:
    with httpx.Client(base_url=mock) as http:
        refused = http.post("/v1/chat/completions", content=body)
        assert refused.status_code == 400
        assert refused.json()["error"]["type"] == "BadRequestError"
        assert http.get("/health").status_code == 200


def test_chunked_requests_split_anywhere_are_read_whole(mock: str) -> None:
    content = json.dumps({"model": BASE, "messages": MESSAGES}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    framed = (
        b"5\r\n" + content[:5] + b"\r\n" + f"{len(content) - 5:x}".encode() + b"\r\n" + content[5:] + b"\r\n0\r\n\r\n"
    )
    where = urlsplit(mock)
    with socket.create_connection((where.hostname, where.port or 0), timeout=5) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        wire = head + framed
        for start in range(0, len(wire), 7):
            raw.sendall(wire[start : start + 7])
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200 OK")


def test_pipelined_requests_are_answered_in_turn(mock: str) -> None:
    stream = json.dumps({"model": BASE, "messages": MESSAGES, "stream": True}).encode()
    first = b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: " + str(len(stream)).encode() + b"\r\n\r\n" + stream
    second = b"GET /version HTTP/1.1\r\nConnection: close\r\n\r\n"
    where = urlsplit(mock)
    with socket.create_connection((where.hostname, where.port or 0), timeout=5) as raw:
        raw.sendall(first + second)
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.index(b"[DONE]") < answer.index(b'"version"')


async def test_client_that_leaves_ends_its_stream(start_mock: StartMock) -> None:
    url = start_mock("--chunk-delay-ms", "50")
    body = {"model": BASE, "messages": MESSAGES, "stream": True}
    async with httpx.AsyncClient(base_url=url) as http:
        async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
            chunks = answer.aiter_raw()  # closing it, as its end does, would close the stream
            await anext(chunks)
            assert 'model_name="mock-base"} 1' in (await http.get("/metrics")).text
        async with asyncio.timeout(2):
            metrics = ""
            while "mock_aborted_total 1" not in metrics:  # each look is a round trip
                metrics = (await http.get("/metrics")).text
    assert 'model_name="mock-base"} 0' in metrics


def test_latency_delays_whole_answers(start_mock: StartMock) -> None:
    url = start_mock("--latency-ms", "80")
    started = time.perf_counter()
    assert httpx.post(f"{url}/v1/chat/completions", json={"model": BASE, "messages": MESSAGES}).status_code == 200
    assert time.perf_counter() - started >= 0.08

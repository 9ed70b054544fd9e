"""What arrives at the upstream and what comes back: the client's bytes and the engine's, but for `model`."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from bench.canned import response
from configs.settings import EngineSettings
from tests.serving.gateway.conftest import Endpoint, StartEndpoint
from tests.serving.gateway.scripted import MODEL, Scripted, delta, event, stream, whole

ODD = (
    b'{"seed":123456789012345678901234567890,"temperature":1.0E-2,"top_p":0.10000000000000000000001,"logit_bias":{"50256":-100.0},'
    b'"stop":["\\u00e9\\u2028\\/","\xc3\xa9"],"future_field":{"deep":[[[{"a":[null,true,1e400,-0]}]]]},"n":1,'
    b'"tools":[{"type":"function","function":{"name":"f","parameters":{"$ref":"#/x","maximum":1e999,"model":"decoy"}}}],'
    b'"metadata":{"agent":"legal","model":"decoy"},"stream_options":null,'
)
PROMPT = b'"messages":[{"role":"user","content":"say \\"model\\": \\"x\\" \\ud83d\\ude00","extra":1}]'
DONE = event(b"[DONE]")


def fields(body: bytes) -> dict[str, bytes]:
    """Raw JSON of each field."""
    return {name: bytes(raw) for name, raw in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items()}


async def post(endpoint: Endpoint, body: bytes, path: str = "/v1/chat/completions", **headers: str) -> bytes:
    answered = await endpoint.http.post(path, content=body, headers=headers)
    assert answered.status_code == 200, answered.text
    return answered.content


async def test_every_field_but_model_arrives_as_it_was_sent(faulty: Endpoint, scripted: Scripted) -> None:
    sent = ODD + b'"model":"auto",' + PROMPT + b"}"
    await post(faulty, sent)
    arrived = fields(scripted.asked[0].body)
    name = json.loads(arrived.pop("model"))
    assert name.startswith("legal@")
    expected = fields(sent)
    del expected["model"]
    assert arrived == expected


async def test_the_answer_comes_back_as_it_was_but_for_model(faulty: Endpoint, scripted: Scripted) -> None:
    said = (
        b'{"id":"x","metadata":{"model":"decoy"}, "model" : "%s","n":1e400,'
        b'"text":"\\"model\\":\\"scripted\\" \xc3\xa9\\u00e9"}'
    )
    scripted.script = whole(response("200 OK", said % MODEL.encode()))
    body = b'{"model":"auto:nobody",' + PROMPT + b"}"
    assert await post(faulty, body) == said.replace(b' "model" : "%s"', b' "model":"auto:nobody"')
    compact = said.replace(b' "model" : ', b'"model":')
    scripted.script = whole(response("200 OK", compact % MODEL.encode()))
    assert await post(faulty, body) == compact % b"auto:nobody"


async def test_tool_calls_pass_through_a_stream_untouched_wherever_the_network_cuts(
    faulty: Endpoint, scripted: Scripted
) -> None:
    call = {"index": 0, "function": {"arguments": '{"model": "scripted", "a": "\\u00e9 é \\n\\n"}'}}
    choice = {"index": 0, "delta": {"tool_calls": [call]}, "finish_reason": None}
    chunk = event({"id": "1", "model": MODEL, "choices": [choice]})
    data = b": a comment\n\n" + delta("one") + chunk + chunk + DONE
    expected = data.replace(b'"model": "scripted"', b'"model":"auto"').replace(b'\\"model\\": \\"scripted', b"\0")
    for size in (1, 2, 7, len(data)):
        scripted.script = stream(*(data[start : start + size] for start in range(0, len(data), size)))
        got = await post(faulty, b'{"model":"auto","stream":true,' + PROMPT + b"}")
        assert got.replace(b'\\"model\\": \\"scripted', b"\0") == expected, size


@pytest.mark.parametrize("asks", [False, True])
async def test_the_usage_chunk_reaches_only_those_who_asked(faulty: Endpoint, scripted: Scripted, asks: bool) -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    running = delta("one", usage=usage)  # as with continuous usage: what it says beside a token stays
    scripted.script = stream(running, event({"model": MODEL, "choices": [], "usage": usage}), DONE)
    options: dict[str, Any] = {"stream_options": {"include_usage": True, "x": 1}} if asks else {}
    answered = await faulty.ask("auto", stream=True, **options)
    assert answered.content.count(b'"usage"') == 1 + asks
    arrived = scripted.asked[0].json["stream_options"]
    assert arrived == ({"include_usage": True, "x": 1} if asks else {"include_usage": True})
    metrics = (await faulty.http.get("/metrics")).text
    assert 'loradock_tokens_total{adapter="none",kind="completion"} 2.0' in metrics


async def test_nothing_is_added_to_requests_of_the_responses_api(faulty: Endpoint, scripted: Scripted) -> None:
    created = {"type": "response.created", "response": {"metadata": {"model": "decoy"}, "model": MODEL, "usage": None}}
    scripted.script = stream(b"event: response.created\n" + event(created))
    got = await post(
        faulty, b'{"model":"auto","input":"hi","stream":true,"metadata":{"model":"decoy"}}', "/v1/responses"
    )
    assert scripted.asked[0].json.keys() == {"model", "input", "stream", "metadata"}
    assert json.loads(got.partition(b"data: ")[2])["response"] == {
        "metadata": {"model": "decoy"},
        "model": "auto",
        "usage": None,
    }


async def test_a_further_tier_gets_its_model_name_and_its_own_key_and_nothing_else_of_ours(
    start: StartEndpoint, mock_url: str, scripted: Scripted, scripted_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UPSTREAM_KEY", "sk-upstream")
    tier = EngineSettings(
        name="big", kind="openai", url=scripted_url, model="vendor/big-1", served_name="big", api_key_env="UPSTREAM_KEY"
    )
    endpoint = await start(mock_url, more_engines=(tier,))
    sent = ODD.replace(b'"stream_options":null,', b"") + b'"model":"big","stream":true,' + PROMPT + b"}"
    scripted.script = stream(delta("one").replace(b"scripted", b"vendor/big-1-0613"), DONE)
    got = await post(endpoint, sent, authorization="Bearer ld-client", cookie="a=b", **{"x-agent": "legal"})
    assert b'"model":"big"' in got
    (asked,) = scripted.asked
    assert asked.headers["authorization"] == "Bearer sk-upstream"
    assert asked.headers.keys() <= {
        "host",
        "authorization",
        "content-type",
        "content-length",
        "accept",
        "accept-encoding",
        "user-agent",
    }
    arrived = fields(asked.body)
    assert arrived == fields(sent) | {"model": b'"vendor/big-1"'}


async def test_the_clients_key_never_reaches_an_engine(faulty: Endpoint, scripted: Scripted) -> None:
    await post(
        faulty, b'{"model":"legal",' + PROMPT + b"}", authorization="Bearer ld-secret", **{"api-key": "ld-secret"}
    )
    (asked,) = scripted.asked
    assert "ld-secret" not in repr(asked)

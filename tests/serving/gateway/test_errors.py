"""Whatever goes wrong, wherever: OpenAI's envelope and a request id."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from bench.canned import STREAM_HEAD, response
from tests.serving.gateway.conftest import Endpoint, StartEndpoint
from tests.serving.gateway.scripted import MODEL, Scripted, answer, chunk, delta, event, stream, whole
from tests.serving.waiting import until

ENVELOPE = {"message", "type", "param", "code"}


def check(answered: httpx.Response, status: int, **fields: Any) -> dict[str, Any]:
    """The error in an answer that must have `status` and these `fields`."""
    assert answered.status_code == status, answered.text
    assert answered.headers["x-request-id"]
    content = answered.json()
    assert content.keys() == {"error"}
    error: dict[str, Any] = content["error"]
    assert error.keys() == ENVELOPE
    assert isinstance(error["message"], str) and error["message"]
    assert isinstance(error["type"], str)
    assert {name: error[name] for name in fields} == fields
    return error


def vllm_error(status: str, message: str, **more: Any) -> bytes:
    return answer({"error": {"message": message, "type": "X", "param": None, "code": int(status[:3]), **more}}, status)


async def sse(endpoint: Endpoint, **fields: Any) -> list[bytes]:
    """The events of a streamed answer."""
    answered = await endpoint.ask(MODEL, stream=True, **fields)
    assert answered.status_code == 200
    return answered.content.split(b"\n\n")[:-1]


WRONG_FIELDS = [
    b'"stream": 1e999',
    b'"stream": "yes"',
    b'"metadata": [1]',
    b'"metadata": {"agent": 5}',
    b'"metadata": {"x": 1e999}',
    b'"tools": {}',
    b'"stream_options": 3',
    b'"messages": [{"role": "user", "content": "\xff"}]',
    b'"messages": [{"role": "user", "content": 1e999}]',
    b'"messages": [' + b"[" * 5000 + b"]" * 5000 + b"]",
    b'"messages": 5',
    b'"model": null',
]
UPSTREAM = [
    ("400 Bad Request", 400, "invalid_request_error", None),
    ("422 Unprocessable", 422, "invalid_request_error", None),
    ("429 Too Many", 429, "rate_limit_error", "overloaded"),
    ("401 Unauthorized", 502, "server_error", "upstream_refused"),
    ("403 Forbidden", 502, "server_error", "upstream_refused"),
    ("302 Found", 502, "server_error", "engine_error"),
    ("500 Oops", 500, "server_error", "engine_error"),
    ("501 Not Implemented", 501, "server_error", "engine_error"),
    ("503 Busy", 503, "server_error", "engine_unavailable"),
]
REFUSALS = [
    ("GET", "/nothing", 404, "unknown_url"),
    ("GET", "/v1/models/a/b/c", 404, "model_not_found"),
    ("GET", "/v1/adapters/nobody", 404, "adapter_not_found"),
    ("GET", "/v1/chat/completions", 405, "unknown_url"),
    ("PATCH", "/v1/adapters", 405, "unknown_url"),
    ("DELETE", "/health", 405, "unknown_url"),
    ("DELETE", "/v1/adapters/nobody", 404, "adapter_not_found"),
    ("POST", "/v1/adapters/nobody/promote", 404, "adapter_not_found"),
    ("POST", "/v1/adapters/nobody/rollback", 404, "adapter_not_found"),
    ("POST", "/v1/adapters/nobody/load", 404, "adapter_not_found"),
    ("POST", "/v1/adapters/nobody/unload", 404, "adapter_not_found"),
    ("POST", "/v1/adapters/nobody/pin", 404, "adapter_not_found"),
    ("POST", "/v1/adapters/nobody/unpin", 404, "adapter_not_found"),
    ("POST", "/v1/adapters/legal/rollback", 409, None),
    ("GET", "/v1/adapters?include_retired=perhaps", 422, "bool_parsing"),
    ("POST", "/v1/route", 400, "invalid_json"),
    ("POST", "/v1/chat/completions", 400, "invalid_json"),
    ("POST", "/v1/adapters", 422, "missing"),
]
SENSELESS = [
    ({"name": "a", "source": "/nowhere", "weights": 1}, "weights"),
    ({"name": "a"}, "source"),
    ({"name": 5, "source": "/nowhere"}, "name"),
    ({"name": "a", "source": ""}, "source"),
    ({"name": "a", "source": "/nowhere", "pin": "sometimes"}, "pin"),
    ({"name": "a", "source": "/nowhere", "alias": "king"}, "alias"),
    ({"name": "../a", "source": "/nowhere"}, "name"),
    ({"name": "a\r\nx: y", "source": "/nowhere"}, "name"),
    ({"name": "a", "source": "/nowhere"}, "source"),
    ({"name": "a", "source": "/now\0here"}, "source"),
    ([], None),
]


async def test_every_refusal_has_the_envelope(endpoint: Endpoint) -> None:
    for method, path, status, code in REFUSALS:
        error = check(await endpoint.http.request(method, path), status, type="invalid_request_error")
        assert error["code"] == (code or error["code"]), path


async def test_a_registration_that_makes_no_sense_is_refused_with_its_field(endpoint: Endpoint) -> None:
    for body, param in SENSELESS:
        check(await endpoint.http.post("/v1/adapters", json=body), 422, param=param)
    listed = (await endpoint.http.get("/v1/adapters")).json()["data"]
    assert {entry["name"] for entry in listed} == {"legal", "support", "extra"}


async def test_bad_json_is_400(endpoint: Endpoint) -> None:
    for path in ("/v1/adapters", "/v1/route", "/v1/completions", "/v1/adapters/legal/promote"):
        for body in (b"{", b"\xff\xfe", b"{'a': 1}"):
            check(await endpoint.http.post(path, content=body, headers={"content-type": "application/json"}), 400)


async def test_wrong_values_are_the_clients_fault_and_never_an_internal_error(endpoint: Endpoint) -> None:
    for field in WRONG_FIELDS:
        body = b'{"model": "auto", "messages": [{"role": "user", "content": "x"}], ' + field + b"}"
        check(await endpoint.http.post("/v1/chat/completions", content=body), 400, type="invalid_request_error")


async def test_a_body_over_the_limit_is_413_whether_its_length_is_told_or_not(
    start: StartEndpoint, mock_url: str
) -> None:
    endpoint = await start(mock_url, max_body_bytes=4096)

    async def pieces() -> Any:
        for _ in range(8):
            yield b" " * 1000

    for path in ("/v1/chat/completions", "/v1/adapters", "/v1/route"):
        for content in (b" " * 8000, pieces()):
            check(await endpoint.http.post(path, content=content), 413, code="request_too_large")
    assert (await endpoint.ask("legal")).status_code == 200


async def test_an_unforeseen_failure_is_a_500_with_an_id_and_is_counted(
    endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(endpoint.gateway.registry, "list_versions", broken)
    monkeypatch.setattr(endpoint.gateway, "decide", broken)
    sent = {"x-request-id": "mine-1"}
    for answered in (await endpoint.http.get("/v1/adapters", headers=sent), await endpoint.ask(headers=sent)):
        error = check(answered, 500, type="server_error", code="internal_error")
        assert "secret" not in error["message"]
        assert answered.headers["x-request-id"] == "mine-1"
    metrics = (await endpoint.http.get("/metrics")).text
    assert 'loradock_requests_total{path="/v1/adapters",status="500"} 1.0' in metrics
    assert endpoint.idle()


async def test_a_request_id_is_taken_over_only_where_it_is_harmless(endpoint: Endpoint) -> None:
    for given in (b"x" * 129, b"two words", "ö".encode(), b"a;b"):
        answered = await endpoint.http.get("/health", headers={b"x-request-id": given})
        assert answered.headers["x-request-id"].startswith("req_")


# -- the upstream's errors -------------------------------------------------------------------------------------------


async def test_upstream_errors_become_ours(faulty: Endpoint, scripted: Scripted) -> None:
    for status, became, kind, code in UPSTREAM:
        readable = vllm_error(status, "key sk-123 is odd")
        for said in (readable, response(status, b"<html>\xff", "text/html")):
            scripted.script = whole(said)
            for streams in (False, True):
                answered = await faulty.ask(MODEL, stream=streams)
                error = check(answered, became, type=kind, code=code)
                assert ("retry-after" in answered.headers) == (became in (429, 503))
                tells = said is readable and code != "upstream_refused"
                assert ("sk-123" in error["message"]) == tells, status
    assert faulty.idle()


@pytest.mark.parametrize("status", ["429 Too Many", "503 Busy"])
async def test_the_upstreams_retry_after_is_passed_on(faulty: Endpoint, scripted: Scripted, status: str) -> None:
    scripted.script = whole(vllm_error(status, "later").replace(b"\r\n\r\n", b"\r\nretry-after: 17\r\n\r\n", 1))
    assert (await faulty.ask(MODEL)).headers["retry-after"] == "17"


async def test_an_adapter_that_the_engine_lost_is_503_with_retry_after(faulty: Endpoint, scripted: Scripted) -> None:
    scripted.script = whole(vllm_error("404 Not Found", "The model `legal` does not exist.", type="NotFoundError"))
    answered = await faulty.ask("legal")
    check(answered, 503, code="engine_unavailable")
    assert answered.headers["retry-after"] == "1"
    check(await faulty.ask(MODEL), 404)  # nothing was lost here: the client may as well give up


async def test_a_prompt_past_the_context_is_reported_on_the_prompts_field(faulty: Endpoint, scripted: Scripted) -> None:
    scripted.script = whole(vllm_error("400 Bad Request", "too long", param="input_tokens"))
    check(await faulty.ask(MODEL), 400, code="context_length_exceeded", param="messages")
    completion = await faulty.http.post("/v1/completions", json={"model": MODEL, "prompt": "x"})
    check(completion, 400, code="context_length_exceeded", param="prompt")


async def test_an_upstream_that_falls_silent_is_504(
    start: StartEndpoint, scripted: Scripted, scripted_url: str
) -> None:
    async def slow(request: object, writer: asyncio.StreamWriter) -> None:
        if request.json.get("stream"):  # type: ignore[attr-defined]
            writer.write(STREAM_HEAD + chunk(delta("a")))
        await asyncio.get_running_loop().create_future()

    endpoint = await start(scripted_url, MODEL, request_timeout_s=0.2)
    scripted.script = slow
    check(await endpoint.ask(MODEL), 504, code="engine_timeout")
    *_, last = await sse(endpoint)
    assert json.loads(last.removeprefix(b"data: "))["error"]["code"] == "engine_timeout"
    await until(endpoint.idle)
    assert scripted.left.is_set()


async def test_an_upstream_that_hangs_up_before_its_answer_is_503(faulty: Endpoint, scripted: Scripted) -> None:
    async def hang_up(request: object, writer: asyncio.StreamWriter) -> None:
        writer.close()

    scripted.script = hang_up
    answered = await faulty.ask(MODEL)
    check(answered, 503, code="engine_unavailable")
    assert answered.headers["retry-after"]


# -- after a stream has begun ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("ends", [True, False])
async def test_a_stream_that_breaks_off_ends_with_an_error_event(
    faulty: Endpoint, scripted: Scripted, ends: bool
) -> None:
    cut = delta("two")[:20]  # the upstream dies in the middle of an event: that half is not for the client
    scripted.script = stream(delta("one"), cut, ends=ends)
    first, *_, last = await sse(faulty)
    assert b"one" in first
    error = json.loads(last.removeprefix(b"data: "))["error"]
    assert error.keys() == ENVELOPE
    assert error["code"] == "engine_unavailable"
    with pytest.raises(openai.APIError, match="engine"):
        async for _ in await faulty.openai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "x"}], stream=True
        ):
            pass
    assert faulty.idle()
    metrics = (await faulty.http.get("/metrics")).text
    assert 'loradock_requests_total{path="/v1/chat/completions",status="503"} 2.0' in metrics


async def test_an_error_event_of_the_upstream_itself_passes(faulty: Endpoint, scripted: Scripted) -> None:
    scripted.script = stream(delta("one"), event({"error": {"message": "odd", "code": 500}}), event(b"[DONE]"))
    assert b'"odd"' in (await sse(faulty))[1]


async def test_an_idle_connection_that_the_upstream_closed_is_not_the_clients_trouble(
    faulty: Endpoint, scripted: Scripted
) -> None:
    async def once(request: object, writer: asyncio.StreamWriter) -> None:
        writer.write(answer({"model": MODEL, "choices": []}))
        await writer.drain()
        writer.close()  # though nothing announced it

    scripted.script = once
    for _ in range(5):
        assert (await faulty.ask(MODEL)).status_code == 200

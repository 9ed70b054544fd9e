"""The official client against the whole thing."""

import asyncio
import json
import re

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from tests.endpoint.conftest import Server, until

TICKET = "I was charged twice for my order and want my money back."
USER = [{"role": "user", "content": TICKET}]
LONG = [{"role": "user", "content": "one two three four " * 2000}]


def test_an_agent_task_is_answered_by_its_champion_and_the_headers_say_so(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(model="support-agent", messages=USER, temperature=0)
    answer = raw.parse()
    assert answer.model == "support-agent"
    assert re.fullmatch(r"[a-z_]+", answer.choices[0].message.content or "")
    assert answer.usage is not None and answer.usage.completion_tokens > 0
    headers = raw.headers
    assert re.fullmatch(r"support-agent@[0-9a-f]{12}", headers["x-loradock-adapter"])
    assert headers["x-loradock-agent"] == "support-agent"
    assert headers["x-loradock-reason"] == "champion"
    assert headers["x-loradock-adapter-state"] in ("warm", "cold")
    assert 0 <= float(headers["x-loradock-difficulty"]) <= 1
    assert float(headers["x-loradock-overhead-ms"]) < 100
    assert headers["x-request-id"]
    base = headers["x-loradock-model"]
    assert client.chat.completions.create(model=base, messages=USER, max_tokens=4).model == base


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("auto", "champion"),
        ("auto:support", "champion"),
        ("auto:support-agent", "champion"),
        ("support-agent@champion", "explicit"),
        ("loradock-tiny", "explicit"),
        ("auto:marketing", "no_adapter"),
        ("auto:nobody-knows", "no_adapter"),
    ],
)
def test_every_way_to_name_a_route(client: OpenAI, model: str, reason: str) -> None:
    raw = client.chat.completions.with_raw_response.create(model=model, messages=USER, max_tokens=8)
    assert raw.headers["x-loradock-reason"] == reason
    assert raw.parse().model == model


def test_an_exact_version_can_be_named(client: OpenAI, server: Server) -> None:
    version = server.get("/v1/adapters/legal-agent").json()["version"]
    for model in (f"legal-agent@{version}", f"legal-agent@{version[:8]}"):
        raw = client.chat.completions.with_raw_response.create(model=model, messages=USER, max_tokens=4)
        assert raw.headers["x-loradock-adapter"] == f"legal-agent@{version}"


def test_headers_and_metadata_name_the_agent(client: OpenAI) -> None:
    create = client.chat.completions.with_raw_response.create
    by_header = create(model="auto", messages=USER, max_tokens=4, extra_headers={"X-Agent": "legal"})
    by_metadata = create(model="auto", messages=USER, max_tokens=4, metadata={"agent": "legal-agent"})
    assert by_header.headers["x-loradock-agent"] == by_metadata.headers["x-loradock-agent"] == "legal-agent"


def test_out_of_scope_goes_to_the_base(client: OpenAI) -> None:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    raw = client.chat.completions.with_raw_response.create(model="auto", messages=messages, max_tokens=8)
    assert raw.headers["x-loradock-adapter"] == "none"
    assert raw.headers["x-loradock-reason"] == "out_of_scope"


def test_a_stream_gives_the_same_text_and_usage_only_to_those_who_ask(client: OpenAI) -> None:
    whole = client.chat.completions.create(model="support-agent", messages=USER, temperature=0)
    chunks = list(client.chat.completions.create(model="support-agent", messages=USER, temperature=0, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert all(chunk.model == "support-agent" and chunk.usage is None for chunk in chunks)
    asked = list(
        client.chat.completions.create(
            model="support-agent", messages=USER, temperature=0, stream=True, stream_options={"include_usage": True}
        )
    )
    assert asked[-1].choices == []
    assert asked[-1].usage is not None and whole.usage is not None
    assert asked[-1].usage.completion_tokens == whole.usage.completion_tokens


def test_logprobs_tools_structured_output_and_unknown_fields_reach_the_engine(client: OpenAI) -> None:
    create = client.chat.completions.create
    answer = create(model="support-agent", messages=USER, max_tokens=4, logprobs=True, top_logprobs=2)
    assert answer.choices[0].logprobs is not None and answer.choices[0].logprobs.content is not None
    assert len(answer.choices[0].logprobs.content[0].top_logprobs) == 2

    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    schema["additionalProperties"] = False  # type: ignore[assignment]
    shaped = create(
        model="loradock-tiny",
        messages=USER,
        max_tokens=24,
        response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema, "strict": True}},
    )
    assert isinstance(json.loads(shaped.choices[0].message.content or "")["ok"], bool)

    function = {"name": "refund", "parameters": schema, "strict": True}
    tool = create(
        model="loradock-tiny",
        messages=USER,
        max_tokens=100,
        frequency_penalty=2,  # an untaught model would rather emit white space for ever
        tools=[{"type": "function", "function": function}],  # type: ignore[list-item]
        tool_choice={"type": "function", "function": {"name": "refund"}},
    )
    calls = tool.choices[0].message.tool_calls
    assert calls and isinstance(json.loads(calls[0].function.arguments)["ok"], bool)

    forced = create(
        model="loradock-tiny", messages=USER, max_tokens=5, extra_body={"ignore_eos": True, "min_tokens": 5}
    )
    assert forced.usage is not None and forced.usage.completion_tokens == 5


def test_completions_and_responses(client: OpenAI) -> None:
    completion = client.completions.create(model="support-agent", prompt=TICKET, max_tokens=4)
    assert completion.model == "support-agent"
    chunks = list(client.completions.create(model="support-agent", prompt=TICKET, max_tokens=4, stream=True))
    assert chunks and all(chunk.model == "support-agent" for chunk in chunks)
    response = client.responses.create(model="support-agent", input=TICKET, temperature=0)
    assert response.model == "support-agent"
    whole = client.chat.completions.create(model="support-agent", messages=USER, temperature=0)
    assert response.output_text == whole.choices[0].message.content
    events = list(client.responses.create(model="support-agent", input=TICKET, temperature=0, stream=True))
    assert events[-1].type == "response.completed"


def test_embeddings_that_the_engine_does_not_have_are_a_clear_error(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as refused:
        client.embeddings.create(model="loradock-tiny", input="x")
    assert refused.value.status_code in (400, 404)
    assert refused.value.body


def test_models_list_bases_agents_and_adapters(client: OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert {"auto", "loradock-tiny", "support-agent", "legal-agent", "security-agent"} <= names
    assert any(re.fullmatch(r"support-agent@[0-9a-f]{12}", name) for name in names)
    assert client.models.retrieve("support-agent").id == "support-agent"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("no-such")


def test_an_unknown_model_is_404_with_the_nearest_names(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as refused:
        client.chat.completions.create(model="suport-agent", messages=USER)
    assert refused.value.code == "model_not_found"
    assert refused.value.param == "model"
    assert "support-agent" in str(refused.value)


def test_a_prompt_past_the_context_is_reported_as_openai_does(client: OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model="support-agent", messages=LONG, stream=stream)
        assert refused.value.code == "context_length_exceeded"
        assert refused.value.param == "messages"
        assert refused.value.type == "invalid_request_error"


def test_what_the_engine_refuses_keeps_its_reason(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="support-agent", messages=USER, temperature=-3)
    assert "temperature" in str(refused.value)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{not json", 400),
        (b"[]", 400),
        (b'{"messages":[{"role":"user","content":"x"}]}', 400),
        (b'{"model":"auto","messages":[]}', 400),
        (b'{"model":"auto","messages":"x"}', 400),
        (b'{"model":7,"messages":[{"role":"user","content":"x"}]}', 400),
    ],
)
def test_malformed_requests_get_the_envelope(server: Server, body: bytes, status: int) -> None:
    answer = httpx.post(server.url + "/v1/chat/completions", content=body)
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert answer.headers["x-request-id"]


def test_a_body_of_200_mb_is_refused_and_the_server_goes_on(server: Server) -> None:
    def chunks(size: int = 1 << 20) -> object:
        yield b'{"model":"auto","messages":[{"role":"user","content":"'
        for _ in range(200):
            yield b"x" * size
        yield b'"}]}'

    try:
        answer = httpx.post(server.url + "/v1/chat/completions", content=chunks(), timeout=60)  # type: ignore[arg-type]
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"
    except (httpx.WriteError, httpx.RemoteProtocolError):
        pass  # the server has closed the door before all was sent
    told = httpx.post(server.url + "/v1/chat/completions", content=b"x" * (9 << 20), timeout=60)
    assert told.status_code == 413
    assert server.get("/ready").status_code == 200


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/nothing", 404), ("PUT", "/v1/models", 405)])
def test_unknown_routes_get_the_envelope(server: Server, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, server.url + path)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == "unknown_url"


async def test_a_client_that_leaves_ends_the_engines_work_and_frees_the_slot(
    server: Server, aclient: AsyncOpenAI
) -> None:
    stream = await aclient.chat.completions.create(
        model="support-agent", messages=USER, stream=True, max_tokens=1500, extra_body={"ignore_eos": True}
    )
    await anext(aiter(stream))
    assert running(server) == 1
    assert server.get("/v1/adapters/support-agent").json()["residency"]["in_flight"] == 1
    await stream.close()
    assert await until(lambda: running(server) == 0)
    assert await until(lambda: server.get("/v1/adapters/support-agent").json()["residency"]["in_flight"] == 0)


async def test_a_client_that_leaves_before_the_first_byte_does_so_too(server: Server, aclient: AsyncOpenAI) -> None:
    call = asyncio.create_task(
        aclient.chat.completions.create(
            model="support-agent", messages=USER, max_tokens=1500, extra_body={"ignore_eos": True}
        )
    )
    assert await until(lambda: running(server) == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert await until(lambda: running(server) == 0)


def running(server: Server) -> int:
    """Requests that the engine works on, from its own metrics."""
    match = re.search(r"^vllm:num_requests_running\{[^}]*\} ([0-9.]+)", server.get("/metrics").text, re.MULTILINE)
    assert match, "the engine's metrics are missing"
    return int(float(match.group(1)))


def test_metrics_cover_what_operators_watch(server: Server, client: OpenAI) -> None:
    client.chat.completions.create(model="support-agent", messages=USER, max_tokens=4)
    text = server.get("/metrics").text
    for line in (
        'loradock_requests_total{path="/v1/chat/completions",status="200"}',
        'loradock_routes_total{agent="support-agent",reason="champion"}',
        'loradock_adapters{engine="base",state="ready"}',
        'loradock_adapter_slots{engine="base",use="total"} 4.0',
        'loradock_adapter_load_seconds_count{engine="base",outcome="ok"}',
        'loradock_adapter_stage_seconds_count{engine="base"}',
        "loradock_overhead_seconds_bucket",
        'loradock_engine_restarts{engine="base"}',
        "loradock_recorder_drops_total",
        "vllm:generation_tokens_total",
    ):
        assert line in text, line


def test_a_route_is_explained_without_being_run(server: Server) -> None:
    decision = server.post("/v1/route", {"model": "auto", "messages": USER}).json()
    assert decision["agent"] == "support-agent"
    assert decision["adapter"].startswith("support-agent@")
    assert decision["reason"] == "champion"
    assert decision["candidates"]

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import BadRequest, BodyTooLarge
from serving.gateway.body import ParsedBody, read_body

CHAT = "/v1/chat/completions"
MESSAGES = [{"role": "user", "content": "hello"}]


def parse(body: Any, path: str = CHAT) -> ParsedBody:
    return ParsedBody(path, json.dumps(body).encode())


def test_every_other_field_keeps_its_bytes() -> None:
    tools = b'[ {"type":"function", "function":{"name":"f","parameters":{"x":{"$ref":"#/\\u0061"}}}} ]'
    raw = b'{"model":"auto","messages":[{"role":"user","content":"x"}],"tools":%s,"top_p":0.10,"n_2027":1e-3}' % tools
    sent = ParsedBody(CHAT, raw).for_engine("legal@0123456789ab", ask_usage=False)
    assert tools in sent
    assert b'"top_p":0.10' in sent
    assert b'"n_2027":1e-3' in sent
    assert json.loads(sent)["model"] == "legal@0123456789ab"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
READ_BY_US = ("model", "messages", "stream", "metadata", "tools", "stream_options")


@given(st.dictionaries(st.text().filter(lambda name: name not in READ_BY_US), json_values))
def test_any_unknown_field_reaches_the_engine_unchanged(fields: dict[str, Any]) -> None:
    raw = json.dumps({"model": "auto", "messages": MESSAGES} | fields).encode()
    sent = ParsedBody(CHAT, raw).for_engine("base", ask_usage=False)
    assert json.loads(sent) == {"model": "base", "messages": MESSAGES} | fields


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"max_completion_tokens": None, "max_tokens": 9}, 9),
        ({"max_completion_tokens": 5, "max_tokens": 9}, 5),
        ({"max_tokens": True}, None),
        ({"max_tokens": "9"}, None),
    ],
)
def test_the_limit_of_the_answer_is_the_first_that_is_a_number(limits: dict[str, Any], expected: int | None) -> None:
    task = parse({"model": "auto", "messages": MESSAGES} | limits).task(agent=None, session=None, owner="")
    assert task.max_tokens == expected


def test_of_a_repeated_model_field_only_the_routed_one_is_sent() -> None:
    raw = b'{"model":"auto","messages":[{"role":"user","content":"x"}],"model":"auto"}'
    assert ParsedBody(CHAT, raw).for_engine("base", ask_usage=False).count(b'"model"') == 1


def test_asking_for_usage_keeps_the_other_stream_options() -> None:
    body = parse({"model": "a", "messages": MESSAGES, "stream": True, "stream_options": {"x": 1}})
    assert not body.wants_usage
    assert json.loads(body.for_engine("b", ask_usage=True))["stream_options"] == {"x": 1, "include_usage": True}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": MESSAGES}, "model"),
        ({"model": None, "messages": MESSAGES}, "model"),
        ({"model": "", "messages": MESSAGES}, "model"),
        ({"model": 3, "messages": MESSAGES}, "model"),
        ({"model": "a"}, "messages"),
        ({"model": "a", "messages": []}, "messages"),
        ({"model": "a", "messages": None}, "messages"),
        ({"model": "a", "messages": "hello"}, "messages"),
        ({"model": "a", "messages": ["hello"]}, "messages.0"),
        ({"model": "a", "messages": [{"content": "x"}]}, "messages.0.role"),
        ({"model": "a", "messages": MESSAGES, "stream": "yes"}, "stream"),
        ({"model": "a", "messages": MESSAGES, "metadata": []}, "metadata"),
        ({"model": "a", "messages": MESSAGES, "tools": {}}, "tools"),
        ({"model": "a", "messages": MESSAGES, "stream_options": 1}, "stream_options"),
    ],
)
def test_wrong_fields_are_named(body: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as refused:
        parse(body)
    assert refused.value.param == param


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'"x"', b"null", b"\xff\xfe", b'{"model":"a"}x', b"[" * 100_000])
def test_what_is_no_json_object_is_a_bad_request(raw: bytes) -> None:
    with pytest.raises(BadRequest):
        ParsedBody(CHAT, raw)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "a", "prompt": "hello"}),
        ("/v1/completions", {"model": "a", "prompt": ["hello", "you"]}),
        ("/v1/completions", {"model": "a", "prompt": [1, 2, 3]}),
        ("/v1/responses", {"model": "a", "input": "hello", "instructions": "be brief"}),
        ("/v1/responses", {"model": "a", "input": [{"role": "user", "content": "hello"}]}),
        ("/v1/embeddings", {"model": "a", "input": ["hello"]}),
    ],
)
def test_each_endpoint_gives_a_task(path: str, body: dict[str, Any]) -> None:
    task = parse(body, path).task(agent=None, session="s", owner="me")
    assert task.model == "a"
    assert task.session == "s"


def test_headers_go_before_metadata_and_metadata_must_be_text() -> None:
    body = parse({"model": "auto", "messages": MESSAGES, "metadata": {"agent": "legal", "session_id": "m"}})
    assert body.task(agent=None, session=None, owner="").agent == "legal"
    assert body.task(agent="support", session=None, owner="").agent == "support"
    body = parse({"model": "auto", "messages": MESSAGES, "metadata": {"agent": 1}})
    with pytest.raises(BadRequest):
        body.task(agent=None, session=None, owner="")


async def test_a_body_over_the_limit_is_refused_unread_or_while_it_comes() -> None:
    read = 0

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1
        return {"type": "http.request", "body": b"x" * 1000, "more_body": True}

    with pytest.raises(BodyTooLarge):
        await read_body(receive, 200_000_000, 2500)
    assert read == 0
    with pytest.raises(BodyTooLarge):
        await read_body(receive, None, 2500)
    assert read == 3

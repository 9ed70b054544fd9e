"""What can be asked for, what would answer, and who is asked: models, agents, routes, sessions, hostile names."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from urllib.parse import quote

import openai
import pytest

from bench.mock_upstream import BASE, Upstream
from tests.adapters_registry.build import write_adapter
from tests.serving.gateway.conftest import Endpoint
from tests.serving.gateway.test_errors import check

HOSTILE = [
    "a\r\nx-evil: 1",
    "a\nset-cookie: b",
    "\0",
    "ünïcödé",
    "日本",
    "a" * 5000,
    "🙂",
    "../x",
    "a b",
    "%0d%0a",
    '"',
    "\u2028",
]


async def test_whatever_is_listed_can_be_retrieved_and_asked(endpoint: Endpoint) -> None:
    client = endpoint.openai
    names = [model.id async for model in await client.models.list()]
    assert {"auto", BASE, "legal", "support", "extra"} < set(names)
    assert sum("@" in name for name in names) == 3
    for name in names:
        assert (await client.models.retrieve(name)).id == name
        answer = await client.chat.completions.create(model=name, messages=[{"role": "user", "content": "x"}])
        assert answer.model == name
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        await client.models.retrieve("nobody")


async def test_agents_tell_what_serves_them(endpoint: Endpoint) -> None:
    listed = (await endpoint.http.get("/v1/agents")).json()
    agents = {entry["name"]: entry for entry in listed["data"]}
    assert agents["legal"]["champion"].startswith("legal@")
    assert agents["legal"]["challenger"] is None
    assert agents["marketing"]["champion"] is None
    assert len(agents) == len(listed["data"])
    assert all(entry.keys() == agents["legal"].keys() for entry in listed["data"])


async def test_a_route_is_what_the_request_would_get_and_leaves_no_trace(
    endpoint: Endpoint, upstream: Upstream
) -> None:
    for model in ("auto", "legal", "auto:support", "auto:nobody", BASE, "legal@champion"):
        body = {"model": model, "messages": [{"role": "user", "content": "Hello"}]}
        headers = {"x-session-id": f"session {model}"}
        answered = await endpoint.http.post("/v1/route", json=body, headers=headers)
        ran = await endpoint.ask(model, headers=headers)
        decision = answered.json()
        assert decision["reason"] == ran.headers["x-loradock-reason"], decision
        assert decision["base"] == ran.headers["x-loradock-model"]
        assert f"{decision['difficulty']:.3f}" == ran.headers["x-loradock-difficulty"]
    assert upstream.requests == 6
    check(await endpoint.http.post("/v1/route", json={"model": "legl", "messages": [{"role": "user"}]}), 404)
    check(await endpoint.http.post("/v1/route", json={"model": "auto", "messages": []}), 400, param="messages")
    check(await endpoint.http.post("/v1/route", json={"messages": [{"role": "user"}]}), 400, param="model")


async def test_a_session_stays_with_its_agent(endpoint: Endpoint) -> None:
    for headers, more in (({"x-session-id": "one"}, {}), ({}, {"metadata": {"session_id": "two"}})):
        assert (await endpoint.ask("auto", headers=headers, **more)).headers["x-loradock-agent"] == "none"
        await endpoint.ask("auto:legal", headers=headers, **more)
        again = await endpoint.ask("auto", headers=headers, **more)
        assert again.headers["x-loradock-agent"] == "legal"
        assert again.headers["x-loradock-reason"] == "session"
        assert again.headers["x-loradock-adapter"].startswith("legal@")
    assert (await endpoint.ask("auto", headers={"x-session-id": "three"})).headers["x-loradock-agent"] == "none"


async def test_names_that_clients_make_up_cannot_write_headers_or_break_anything(endpoint: Endpoint) -> None:
    for name in HOSTILE:
        asked = [
            await endpoint.ask("auto", metadata={"agent": name, "session_id": name}),
            await endpoint.ask(f"auto:{name}"),
            await endpoint.ask(name),
            await endpoint.ask("auto", user=name),
            await endpoint.http.get(f"/v1/models/{quote(name, safe='')}"),
            await endpoint.http.get(f"/v1/adapters/{quote(name, safe='')}"),
            await endpoint.http.post("/v1/route", json={"model": name, "messages": [{"role": "user", "content": "x"}]}),
        ]
        if name.isprintable():
            raw = name.encode()
            asked.append(await endpoint.ask("auto", headers={"x-agent": raw, "x-session-id": raw}))
        for answered in asked:
            assert answered.status_code in (200, 404), (name[:20], answered.text[:200])
            assert "x-evil" not in answered.headers and "set-cookie" not in answered.headers
            assert all(value.isascii() and value.isprintable() for value in answered.headers.values())
            if answered.status_code == 200 and "model" in answered.json():
                assert answered.json()["model"] in (name, f"auto:{name}", "auto")
            else:
                check(answered, 404)
    streamed = await endpoint.ask("auto:日本\r\n\r\ndata: [DONE]", stream=True)
    events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: {")]
    assert {each["model"] for each in events} == {"auto:日本\r\n\r\ndata: [DONE]"}


async def test_registering_promoting_and_retiring_while_requests_run(endpoint: Endpoint, tmp_path: Path) -> None:
    """The next version takes over with no request lost, and every answer is of one version."""
    first = endpoint.gateway.registered.newest["legal"].engine_name
    source = write_adapter(tmp_path / "next", 9, base_model_name_or_path=BASE)
    stop, seen = asyncio.Event(), list[str]()

    async def ask_on() -> None:
        while not stop.is_set():
            answered = await endpoint.ask("legal")
            assert answered.status_code == 200, answered.text
            seen.append(answered.headers["x-loradock-adapter"])

    asking = [asyncio.ensure_future(ask_on()) for _ in range(4)]
    added = await endpoint.http.post("/v1/adapters", json={"name": "legal", "source": str(source), "agent": "legal"})
    assert added.status_code == 201, added.text
    assert added.json().keys() == {"name", "version", "agent", "state"}
    second = f"legal@{added.json()['version']}"
    assert (await endpoint.ask("legal")).headers["x-loradock-adapter"] == first, "not promoted yet"
    await endpoint.http.post(f"/v1/adapters/{second}/promote")
    assert (await endpoint.ask("legal")).headers["x-loradock-adapter"] == second
    await endpoint.http.post("/v1/adapters/legal/rollback")
    assert (await endpoint.ask("legal")).headers["x-loradock-adapter"] == first
    retired = await endpoint.http.delete(f"/v1/adapters/{second}")
    assert retired.json()["retired"] == [added.json()["version"]]
    stop.set()
    await asyncio.gather(*asking)
    assert set(seen) <= {first, second}
    check(await endpoint.ask(second), 404, code="model_not_found")
    assert endpoint.idle()


async def test_pins_leave_a_slot_to_the_others(endpoint: Endpoint, tmp_path: Path) -> None:
    assert (await endpoint.http.post("/v1/adapters/legal/pin")).json()["pinned"]
    check(await endpoint.http.post("/v1/adapters/support/pin"), 409, code="no_slot")
    source = write_adapter(tmp_path / "more", 31, base_model_name_or_path=BASE)
    body = {"name": "more", "source": str(source), "pin": True}
    check(await endpoint.http.post("/v1/adapters", json=body), 409, code="no_slot")
    assert not (await endpoint.http.get("/v1/adapters/more")).json()["pinned"]
    check(await endpoint.http.post("/v1/adapters/legal/unload"), 409, code="pinned")
    assert not (await endpoint.http.post("/v1/adapters/legal/unpin")).json()["pinned"]
    loaded = (await endpoint.http.post("/v1/adapters/support/load")).json()
    assert loaded["residency"]["state"] == "ready"
    assert loaded["residency"]["in_flight"] == 1

"""With keys configured, every route but `/health` needs one, and those that change adapters an admin's."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import openai
import pytest
from fastapi import FastAPI
from openai import OpenAI
from starlette.routing import BaseRoute, Route

from bench import mock_upstream
from serving.auth import add_key
from serving.gateway.body import PROMPT_FIELD
from tests.serving.gateway.conftest import Endpoint, StartEndpoint
from tests.serving.gateway.test_errors import check


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Method and path of every route, its parameters filled in."""
    for route in _flat(app.routes):
        assert isinstance(route, Route), f"{route}: a kind that this test does not know"
        for method in sorted((route.methods or {"GET"}) - {"HEAD"}):
            yield method, re.sub(r"\{[^}]*\}", "legal", route.path)


def _flat(listed: list[BaseRoute]) -> Iterator[BaseRoute]:
    for route in listed:
        inner = getattr(route, "routes", None) or getattr(getattr(route, "original_router", None), "routes", None)
        if inner:
            yield from _flat(inner)
        else:
            yield route


@pytest.fixture
async def keyed(start: StartEndpoint, mock_url: str, home: Callable[[str], Path]) -> tuple[Endpoint, str, str]:
    """An endpoint with an admin's key and another."""
    path = home(mock_upstream.BASE) / "api_keys.toml"
    admin, plain = add_key(path, "boss", admin=True), add_key(path, "app", admin=False)
    return await start(mock_url), admin, plain


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def test_every_route_but_health_needs_a_key(keyed: tuple[Endpoint, str, str]) -> None:
    endpoint, _, plain = keyed
    listed = {
        *routes(endpoint.app.routes),
        ("GET", "/nothing"),
        ("OPTIONS", "/v1/models"),
        ("GET", "/v1/chat/completions"),
    }
    assert {path for _, path in listed} >= {
        *PROMPT_FIELD,
        "/v1/adapters",
        "/metrics",
        "/docs",
        "/openapi.json",
        "/ready",
    }
    for method, path in listed:
        if path == "/health":
            assert (await endpoint.http.get(path)).status_code == 200
            continue
        for headers in ({}, bearer("ld-wrong"), bearer(plain + "x"), {"authorization": f"Basic {plain}"}):
            answered = await endpoint.http.request(method, path, headers=headers)
            check(answered, 401, type="authentication_error", code="invalid_api_key")
        authorised = await endpoint.http.request(method, path, headers=bearer(plain))
        assert authorised.status_code != 401, path


async def test_what_changes_adapters_needs_an_admins_key(keyed: tuple[Endpoint, str, str]) -> None:
    endpoint, admin, plain = keyed
    for method, path in routes(endpoint.app.routes):
        changes = path.startswith(("/v1/adapters", "/v1/cases")) and method != "GET"
        changes = changes or path.startswith(("/v1/files", "/v1/fine_tuning"))
        answered = await endpoint.http.request(method, path, headers=bearer(plain))
        if changes:
            check(answered, 403, type="permission_error", code="insufficient_permissions")
        else:
            assert answered.status_code in (200, 400, 404, 422), path  # no body, no such case
    assert (await endpoint.http.get("/v1/adapters", headers=bearer(plain))).json()["data"], "nothing was changed"
    pinned = await endpoint.http.post("/v1/adapters/legal/pin", headers=bearer(admin))
    assert pinned.json()["pinned"]
    (entry, *_) = (await endpoint.http.get("/v1/adapters/legal", headers=bearer(plain))).json()["audit"]
    assert entry["actor"] == "boss"


async def test_a_refusal_comes_before_the_body_is_looked_at(keyed: tuple[Endpoint, str, str]) -> None:
    endpoint, _, plain = keyed
    for path in ("/v1/chat/completions", "/v1/adapters", "/v1/route"):
        check(await endpoint.http.post(path, content=b"{"), 401)
    check(await endpoint.http.post("/v1/adapters", content=b"{", headers=bearer(plain)), 403)


async def test_the_official_client_with_a_key(keyed: tuple[Endpoint, str, str]) -> None:
    endpoint, _, plain = keyed

    def talk() -> None:
        with OpenAI(base_url=f"{endpoint.url}/v1", api_key=plain, max_retries=0) as client:
            answer = client.chat.completions.create(model="legal", messages=[{"role": "user", "content": "x"}])
            assert answer.model == "legal"
        wrong = OpenAI(base_url=f"{endpoint.url}/v1", api_key="sk-wrong", max_retries=0)
        with wrong, pytest.raises(openai.AuthenticationError):
            wrong.models.list()

    await asyncio.to_thread(talk)


async def test_sessions_of_two_keys_never_meet(keyed: tuple[Endpoint, str, str]) -> None:
    endpoint, admin, plain = keyed
    await endpoint.ask("auto:legal", headers={**bearer(admin), "x-session-id": "s"})
    own = await endpoint.ask("auto", headers={**bearer(admin), "x-session-id": "s"})
    other = await endpoint.ask("auto", headers={**bearer(plain), "x-session-id": "s"})
    assert own.headers["x-loradock-agent"] == "legal"
    assert other.headers["x-loradock-agent"] != "legal"


async def test_a_page_of_elsewhere_cannot_use_the_open_admin_routes_of_this_machine(endpoint: Endpoint) -> None:
    refused = await endpoint.http.post("/v1/adapters/extra/promote", headers={"origin": "https://evil.example"})
    check(refused, 403, type="permission_error", code="insufficient_permissions")
    own = await endpoint.http.post("/v1/adapters/extra/promote", headers={"origin": "http://localhost:3000"})
    assert own.status_code == 200


async def test_a_name_of_elsewhere_does_not_lead_to_what_needs_no_key(endpoint: Endpoint) -> None:
    rebound = {"host": "evil.example:8000"}
    for answer in (
        await endpoint.http.get("/v1/models", headers=rebound),
        await endpoint.ask("auto:legal", headers=rebound),
    ):
        check(answer, 403, type="permission_error", code="insufficient_permissions")
    assert (await endpoint.http.get("/v1/models", headers={"host": "localhost:8000"})).status_code == 200

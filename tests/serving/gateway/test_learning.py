"""Learning while serving: rewards change whose routes they may, and nobody else's by a single bit."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapters_registry import open_database
from bench import mock_upstream
from configs.agents import load_presets
from configs.routing import RoutingSettings
from configs.settings import EngineSettings
from router import EVERYONE
from serving.auth import add_key
from tests.serving.gateway.conftest import Endpoint, StartEndpoint
from tests.serving.gateway.test_routing import DEAR, HARD, said
from tests.serving.waiting import until
from tests.training.routing.test_versions import MODELS
from training.routing import RouterKeeper, Versions

ASKED = 12


@pytest.fixture
def keys(home: Callable[[str], Path]) -> dict[str, str]:
    path = home(mock_upstream.BASE) / "api_keys.toml"
    return {name: add_key(path, name, admin=name == "boss") for name in ("ann", "bob", "boss")}


async def start_learning(start: StartEndpoint, mock_url: str, **routing: Any) -> Endpoint:
    """Two tiers, and evidence that weighs heavily, so that few rewards change a choice."""
    dear = EngineSettings(name="dear", kind="openai", url=mock_url, **DEAR)
    settings = RoutingSettings(**{"evidence_weight": 2.0, "refit_s": 0, "strong_share": 0.5} | routing)
    return await start(mock_url, more_engines=(dear,), routing=settings)


async def learn(endpoint: Endpoint) -> None:
    """What the training worker does in its thread, then what the gateway does in its own."""

    def step() -> None:
        settings = endpoint.gateway.settings
        database = open_database(settings.database)
        bases = tuple(engine.base_name for engine in endpoint.fleet.engines)
        RouterKeeper(database, settings.home, load_presets(), bases, settings.routing).step()
        database.close()

    await asyncio.to_thread(step)
    await endpoint.gateway.refresh_learnt()


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


async def ask(endpoint: Endpoint, key: str, text: str, reward: float | None = None) -> dict[str, str]:
    """Ask, perhaps judge, and give the route's headers."""
    answer = await endpoint.ask(messages=said(text), headers=bearer(key))
    assert answer.status_code == 200, answer.text
    if reward is not None:
        body = {"response_id": answer.headers["x-request-id"], "reward": reward}
        judged = await endpoint.http.post("/v1/feedback", json=body, headers=bearer(key))
        assert judged.status_code == 200, judged.text
    told = {name: value for name, value in answer.headers.items() if name.startswith("x-loradock-")}
    del told["x-loradock-overhead-ms"]
    return told


async def explain(endpoint: Endpoint, key: str) -> bytes:
    """All that decides a route, to the bit."""
    body = {"model": "auto", "messages": said(HARD)}
    return (await endpoint.http.post("/v1/route", json=body, headers=bearer(key))).content


async def test_one_keys_rewards_leave_anothers_decisions_as_they_were_to_the_bit(
    start: StartEndpoint, mock_url: str, keys: dict[str, str]
) -> None:
    endpoint = await start_learning(start, mock_url)
    before = {name: await explain(endpoint, key) for name, key in keys.items()}
    for number in range(ASKED):
        await ask(endpoint, keys["ann"], f"{HARD} {number}", reward=0.0)
    await learn(endpoint)
    after = {name: await explain(endpoint, key) for name, key in keys.items()}
    assert after["ann"] != before["ann"]
    assert after["bob"] == before["bob"]
    assert after["boss"] == before["boss"], "an admin sees all cases, and is still served by its own"
    alone = await start_learning(start, mock_url)
    same = [await ask(endpoint, keys["bob"], f"{HARD} {number}") for number in range(8)]
    assert same == [await ask(alone, keys["bob"], f"{HARD} {number}") for number in range(8)]


async def test_rewards_change_the_choice_of_whose_they_are(
    start: StartEndpoint, mock_url: str, keys: dict[str, str]
) -> None:
    endpoint = await start_learning(start, mock_url, strong_share=None)
    assert (await ask(endpoint, keys["ann"], HARD))["x-loradock-model"] == "large"
    for number in range(ASKED):
        await ask(endpoint, keys["ann"], f"{HARD} {number}", reward=0.0)
    await learn(endpoint)
    assert (await ask(endpoint, keys["ann"], HARD))["x-loradock-model"] == mock_upstream.BASE
    assert (await ask(endpoint, keys["bob"], HARD))["x-loradock-model"] == "large"


async def test_shared_learning_is_a_setting(start: StartEndpoint, mock_url: str, keys: dict[str, str]) -> None:
    endpoint = await start_learning(start, mock_url, strong_share=None, learning="shared")
    for number in range(ASKED):
        await ask(endpoint, keys["ann"], f"{HARD} {number}", reward=0.0)
    await learn(endpoint)
    assert (await ask(endpoint, keys["bob"], HARD))["x-loradock-model"] == mock_upstream.BASE


async def test_a_key_may_not_judge_what_is_not_its_own(
    start: StartEndpoint, mock_url: str, keys: dict[str, str]
) -> None:
    endpoint = await start_learning(start, mock_url)
    answer = await endpoint.ask(messages=said(HARD), headers=bearer(keys["bob"]))
    before = await explain(endpoint, keys["bob"])
    body = {"response_id": answer.headers["x-request-id"], "reward": 0.0}
    refused = await endpoint.http.post("/v1/feedback", json=body, headers=bearer(keys["ann"]))
    assert refused.status_code == 404
    await learn(endpoint)
    assert await explain(endpoint, keys["bob"]) == before


async def test_a_new_version_decides_without_a_restart_and_a_rollback_takes_it_back(
    start: StartEndpoint, mock_url: str, keys: dict[str, str]
) -> None:
    endpoint = await start_learning(start, mock_url)
    settings = endpoint.gateway.settings
    database = open_database(settings.database)
    versions = Versions(database, settings.home)
    for scope, model in ((EVERYONE, MODELS[0]), ("ann", MODELS[1])):
        versions.promote(scope, versions.add(scope, model, "installed", {}), actor="test")
    await until(lambda: len(endpoint.gateway.learnt.routers) == 2, 5)
    used = [MODELS[1].version.encode(), MODELS[0].version.encode()]
    found = [await explain(endpoint, keys[name]) for name in ("ann", "bob")]
    assert [version in told for version, told in zip(used, found, strict=True)] == [True, True]
    versions.rollback(EVERYONE, actor="test")
    await until(lambda: len(endpoint.gateway.learnt.routers) == 1, 5)
    assert b'"router":"rules"' in await explain(endpoint, keys["bob"])
    database.close()

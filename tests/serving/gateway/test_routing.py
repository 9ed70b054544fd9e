"""The router's choices through the endpoint: wishes, budgets, sessions and shares, and the header that says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench import mock_upstream
from configs.routing import RoutingSettings, RoutingWishes
from configs.settings import EngineSettings
from serving.auth import add_key
from tests.serving.gateway.conftest import Endpoint, StartEndpoint
from tests.serving.gateway.test_errors import check

EASY, THANKS = "Hello there", "Thanks, and the second one?"
HARD = "Prove the equation x^2 + y^2 = 12 step by step, compare the algorithms and explain why it must hold. " * 6
DEAR: dict[str, Any] = {"model": mock_upstream.BASE, "served_name": "large", "cost_per_mtok": 10.0}
"""another engine on the mock: the same model there, another and dearer one to clients"""
StartTiers = Callable[..., Any]


@pytest.fixture
def start_tiers(start: StartEndpoint, mock_url: str) -> StartTiers:
    """Start an endpoint with a cheap tier that takes adapters and a dear one that does not; keywords are settings."""

    async def start_tiers(**settings: Any) -> Endpoint:
        dear = EngineSettings(name="dear", kind="openai", url=mock_url, **DEAR)
        return await start(mock_url, more_engines=(dear,), **settings)

    return start_tiers


def said(*texts: str) -> list[dict[str, str]]:
    """A conversation in which the user said these."""
    messages: list[dict[str, str]] = []
    for text in texts:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "fine"}]
    return messages[:-1]


def told(answer: httpx.Response) -> tuple[str, str]:
    """Base and reason."""
    assert answer.status_code == 200, answer.text
    return answer.headers["x-loradock-model"], answer.headers["x-loradock-reason"]


async def test_difficulty_quality_and_budget_choose_the_tier(start_tiers: StartTiers) -> None:
    endpoint = await start_tiers()
    base = mock_upstream.BASE
    assert told(await endpoint.ask(messages=said(EASY))) == (base, "out_of_scope")
    assert told(await endpoint.ask(messages=said(HARD))) == ("large", "out_of_scope")
    for metadata, expected in (
        ({"quality": "economy"}, (base, "out_of_scope")),
        ({"quality": "best"}, ("large", "out_of_scope")),
        ({"max_cost": 0.0001}, (base, "budget")),
        ({"max_cost": "0.0001"}, (base, "budget")),
        ({"max_cost": 5}, ("large", "out_of_scope")),
        ({"max_cost": 0.0001, "quality": "best"}, (base, "budget")),
    ):
        assert told(await endpoint.ask(messages=said(HARD), metadata=metadata)) == expected, metadata


@pytest.mark.parametrize(
    ("metadata", "param"),
    [
        ({"max_cost": 0}, "metadata.max_cost"),
        ({"max_cost": -1}, "metadata.max_cost"),
        ({"max_cost": "much"}, "metadata.max_cost"),
        ({"max_cost": "nan"}, "metadata.max_cost"),
        ({"max_cost": "inf"}, "metadata.max_cost"),
        ({"max_cost": True}, "metadata.max_cost"),
        ({"max_cost": [1]}, "metadata.max_cost"),
        ({"max_cost": "1" * 5000}, "metadata.max_cost"),
        ({"quality": "cheap"}, "metadata.quality"),
        ({"quality": ""}, "metadata.quality"),
        ({"quality": 3}, "metadata.quality"),
    ],
)
async def test_metadata_that_means_nothing_is_refused(endpoint: Endpoint, metadata: dict, param: str) -> None:
    for model in ("auto", mock_upstream.BASE):
        check(await endpoint.ask(model, metadata=metadata), 400, param=param)


async def test_a_key_has_wishes_of_its_own(
    start_tiers: StartTiers, home: Callable[[str], Path], endpoint: Endpoint
) -> None:
    path = home(mock_upstream.BASE) / "api_keys.toml"
    thrifty = add_key(path, "thrifty", admin=False, routing=RoutingWishes(max_cost=0.0001))
    free = add_key(path, "free", admin=False)
    tiers = await start_tiers()
    answers = {}
    for key in (thrifty, free):
        headers = {"authorization": f"Bearer {key}"}
        answers[key] = told(await tiers.ask(messages=said(HARD), headers=headers))
        more = await tiers.ask(messages=said(HARD), headers=headers, metadata={"max_cost": 100})
        assert told(more) == answers[key], "a request cannot raise its key's limit"
    assert answers == {thrifty: (mock_upstream.BASE, "budget"), free: ("large", "out_of_scope")}


@pytest.mark.parametrize("headers", [{}, {"x-session-id": "s1"}])
async def test_a_conversation_stays_on_its_tier_and_the_header_says_so(start_tiers: StartTiers, headers: dict) -> None:
    endpoint = await start_tiers()
    turns = [HARD, EASY, THANKS, EASY]
    found = [
        told(await endpoint.ask(messages=said(*turns[: number + 1]), headers=headers)) for number in range(len(turns))
    ]
    assert found == [("large", "out_of_scope"), *[("large", "session")] * 3]


async def test_a_share_of_the_dear_tier_is_held(start_tiers: StartTiers) -> None:
    endpoint = await start_tiers(routing=RoutingSettings(strong_share=0.25))
    texts = [" ".join(HARD.split()[: 4 + 7 * (number % 13)]) for number in range(400)]
    bases = [told(await endpoint.ask(messages=said(text)))[0] for text in texts]
    assert abs(bases.count("large") / len(bases) - 0.25) <= 0.03
    explained = await endpoint.http.post("/v1/route", json={"model": "auto", "messages": said(EASY)})
    share = explained.json()["share"]
    assert share["target"] == 0.25
    again = await endpoint.http.post("/v1/route", json={"model": "auto", "messages": said(EASY)})
    assert again.json()["share"] == share, "an explanation leaves no trace"


async def test_a_route_explains_itself(start_tiers: StartTiers) -> None:
    endpoint = await start_tiers()
    body = {"model": "auto", "messages": said(HARD), "metadata": {"quality": "best", "max_cost": 0.5}}
    route = (await endpoint.http.post("/v1/route", json=body)).json()
    assert route["router"] == "rules"
    assert route["terms"] == {"quality": "best", "cost_weight": 0.0, "wait_weight": 0.02, "max_cost": 0.5}
    assert route["reason_text"] == "no agent was named or recognised"
    assert {each["tier"] for each in route["candidates"]} == {"base", "dear"}
    for each in route["candidates"]:
        assert {"probability", "cost", "cost_usd", "wait_s", "utility", "cases"} <= each.keys()


async def test_the_routers_part_is_in_the_overhead(start_tiers: StartTiers) -> None:
    endpoint = await start_tiers()
    answer = await endpoint.ask(messages=said(HARD))
    decided: list[float] = []
    router = endpoint.gateway.router
    plain = router.decide

    def slow(*arguments: Any) -> Any:
        import time

        time.sleep(0.03)
        decided.append(1)
        return plain(*arguments)

    router.decide = slow  # type: ignore[method-assign]
    slower = await endpoint.ask(messages=said(HARD))
    assert decided
    assert float(slower.headers["x-loradock-overhead-ms"]) > 30 > float(answer.headers["x-loradock-overhead-ms"])

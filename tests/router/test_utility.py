"""What a choice weighs: wishes of request, key, agent and settings, budgets and qualities."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.agents import AgentPreset, Routing
from configs.routing import RoutingSettings
from router import Decision, Evidence, Reason, Router, SessionRoute, Tally, Task, Wishes
from router.evidence import BANDS
from router.utility import NO_WISHES, Size, Terms
from tests.router.snapshots import PRESETS, THREE_TIERS, snapshot

ROUTER = Router.from_presets(PRESETS)
MEDIUM = "Compare the two plans and explain why one of them must be cheaper for at least 3 users."
HARD = MEDIUM + " Prove the equation step by step, derive x^2 + y^2 = z^2 and calculate 12 * 9 - 4.\n1. a\n2. b\n" * 4


def decide(
    text: str = HARD, model: str = "auto", tiers=THREE_TIERS, max_tokens=None, session=None, **parts
) -> Decision:
    wishes = parts.pop("wishes", NO_WISHES)
    task = Task.from_messages(text, model=model, wishes=wishes, max_tokens=max_tokens, session=session)
    return ROUTER.decide(task, snapshot(tiers, **parts))


def test_economy_and_best_move_the_same_task_to_different_tiers() -> None:
    tiers = [decide(wishes=Wishes(quality=quality)).tier for quality in ("economy", "balanced", "best")]
    assert tiers == ["middle", "big", "big"]
    assert [decide(MEDIUM, wishes=Wishes(quality=quality)).tier for quality in ("economy", "best")] == ["small", "big"]


def test_the_best_of_equals_is_the_cheapest() -> None:
    twins = tuple(replace(tier, cost_per_mtok=cost) for tier, cost in zip(THREE_TIERS, (1, 2, 3), strict=True))
    certain = [Tally(10_000, 10_000, 0)] * BANDS
    equal = Evidence({("qa", tier.base_name): certain for tier in twins})
    decision = decide(wishes=Wishes(quality="best"), tiers=twins, model="auto:qa", evidence={"": equal})
    assert {each.utility for each in decision.candidates} == {decision.candidates[0].utility}
    assert decision.tier == "small"


@pytest.mark.parametrize(
    ("request_", "key", "agent", "expected"),
    [
        (None, None, None, "balanced"),
        (None, None, "economy", "economy"),
        (None, "best", "economy", "best"),
        ("economy", "best", None, "economy"),
    ],
)
def test_a_request_goes_before_its_key_that_before_the_agent_and_that_before_the_settings(
    request_, key, agent, expected
) -> None:
    wishes = Wishes(quality=request_).over(Wishes(quality=key))
    preset = AgentPreset(name="qa", description="d", routing=Routing(quality=agent))
    assert decide(model="auto:qa", wishes=wishes, presets={"qa": preset}).terms.quality == expected


def test_of_several_budgets_the_least_holds() -> None:
    key = Wishes(max_cost=0.01)
    assert Wishes(max_cost=5.0).over(key).max_cost == 0.01
    assert Wishes(max_cost=0.001).over(key).max_cost == 0.001
    terms = Terms.of(Wishes(max_cost=0.5), RoutingSettings(max_cost=0.2))
    assert terms.max_cost == 0.2


def test_weights_of_a_key_change_its_routes() -> None:
    assert decide().tier == "big"
    assert decide(wishes=Wishes(cost_weight=2.0)).tier == "small"
    assert decide(routing=RoutingSettings(cost_weight=2.0)).tier == "small"
    assert decide(wishes=Wishes(cost_weight=0.0), routing=RoutingSettings(cost_weight=2.0)).tier == "big"


def test_a_request_over_its_budget_goes_to_the_best_within_and_says_so() -> None:
    free = decide()
    cost = {each.tier: each.cost_usd for each in free.candidates}
    assert cost["small"] < cost["middle"] < cost["big"]
    capped = decide(wishes=Wishes(max_cost=cost["middle"]))
    assert (free.tier, capped.tier, capped.reason) == ("big", "middle", Reason.BUDGET)
    ample = decide(wishes=Wishes(max_cost=cost["big"]))
    assert (ample.tier, ample.reason) == ("big", free.reason)


def test_a_budget_that_nothing_meets_gets_the_cheapest_and_says_so() -> None:
    decision = decide(wishes=Wishes(max_cost=1e-12))
    assert (decision.tier, decision.reason) == ("small", Reason.BUDGET)


def test_a_budget_that_changes_nothing_is_no_reason() -> None:
    assert decide("Hello there", wishes=Wishes(max_cost=1.0)).reason is Reason.OUT_OF_SCOPE


def test_what_a_request_costs_grows_with_its_prompt_and_stops_at_its_limit() -> None:
    assert Size.of(4000, None).cost_usd(10.0) == pytest.approx(10 * (1000 + 256) / 1e6)
    assert Size.of(4000, 16).cost_usd(10.0) == pytest.approx(10 * (1000 + 16) / 1e6)
    assert Size.of(4000, 10**9) == Size.of(4000, None)
    costs = [decide(text).candidates[-1].cost_usd for text in (MEDIUM, HARD)]
    assert costs[0] < costs[1]


def test_a_slow_tier_costs_its_wait() -> None:
    slow = (*THREE_TIERS[:2], replace(THREE_TIERS[2], tokens_per_s=8.0))
    decision = decide(tiers=slow)
    assert decision.candidates[-1].wait_s == pytest.approx(256 / 8)
    assert decision.tier != "big"
    assert decide(tiers=slow, max_tokens=1).tier == "big"


def test_a_budget_goes_before_a_session_and_leaves_its_floor() -> None:
    floor = SessionRoute(None, "big", adapted=False, prompt_chars=100)
    decision = decide("thanks", session="s", sessions={("", "s"): floor}, wishes=Wishes(max_cost=1e-5))
    assert (decision.tier, decision.reason) == ("small", Reason.BUDGET)
    assert decision.session_route.tier == "big"


def test_an_explicit_model_is_the_clients_own_cost() -> None:
    decision = decide(model="large", wishes=Wishes(max_cost=1e-12))
    assert (decision.base, decision.reason, decision.terms) == ("large", Reason.EXPLICIT, None)


@given(
    text=st.sampled_from([MEDIUM, HARD, "Hello"]),
    budget=st.floats(1e-7, 1.0),
    quality=st.sampled_from(["economy", "balanced", "best"]),
)
def test_within_budget_unless_nothing_is(text, budget, quality) -> None:
    decision = decide(text, wishes=Wishes(quality, budget))
    costs = {(each.tier, each.adapter is not None): each.cost_usd for each in decision.candidates}
    chosen = costs[decision.tier, decision.adapter is not None]
    assert chosen <= budget or chosen == min(costs.values())

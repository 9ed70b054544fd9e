"""A share of calls for the strongest tier: held within three points, whatever the tasks, by a small state."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from configs.routing import RoutingSettings
from router import NO_CALLS, Decision, Router, Share, Task, Wishes
from router.share import ShareCall
from tests.router.snapshots import ONE_TIER, PRESETS, THREE_TIERS, snapshot

ROUTER = Router.from_presets(PRESETS)
TEXT = "Hello there prove compare the equation x = 12 and explain why it must hold for at least 9 cases, please"
WORDS = TEXT.split()
POINTS = 0.03
CALLS = 1500


def text(draw: random.Random, most: int = 120) -> str:
    return " ".join(draw.choices(WORDS, k=draw.randint(1, most)))


class Gateway:
    """What the gateway does after a decision, and no more."""

    def __init__(self, strong_share: float | None, **parts) -> None:
        self.sessions: dict = {}
        self.shares: dict = {}
        routing = RoutingSettings(strong_share=strong_share)
        known = {"sessions": self.sessions, "shares": self.shares, "routing": routing}
        self.now = snapshot(**{"tiers": THREE_TIERS} | known | parts)

    def decide(self, task: Task) -> Decision:
        decision = ROUTER.decide(task, self.now)
        self.sessions[task.session_key] = decision.session_route
        if decision.share is not None:
            self.shares[decision.share.key] = self.shares.get(decision.share.key, NO_CALLS).after(decision.share)
        return decision


def realised(decisions: list[Decision]) -> float:
    return sum(decision.tier == "big" for decision in decisions) / len(decisions)


@pytest.mark.parametrize("target", [0.0, 0.05, 0.2, 0.5, 0.9, 1.0])
def test_the_share_is_held(target: float) -> None:
    gateway, draw = Gateway(target), random.Random(0)
    decisions = [gateway.decide(Task.from_messages(text(draw))) for _ in range(CALLS)]
    assert abs(realised(decisions) - target) <= POINTS
    assert abs(realised(decisions[500:1000]) - target) <= POINTS


def test_the_calls_that_gain_most_get_it() -> None:
    gateway, draw = Gateway(0.3), random.Random(1)
    decisions = [gateway.decide(Task.from_messages(text(draw))) for _ in range(CALLS)][300:]
    strong = [each.difficulty for each in decisions if each.tier == "big"]
    others = [each.difficulty for each in decisions if each.tier != "big"]
    assert sum(strong) / len(strong) > sum(others) / len(others) + 0.2


def test_it_is_held_when_the_tasks_become_harder() -> None:
    gateway, draw = Gateway(0.25), random.Random(2)
    for most in (20, 200):
        decisions = [gateway.decide(Task.from_messages(text(draw, most))) for _ in range(CALLS)]
        assert abs(realised(decisions) - 0.25) <= POINTS


def test_equal_tasks_share_too() -> None:
    gateway = Gateway(0.4)
    decisions = [gateway.decide(Task.from_messages("What is 2 + 2?")) for _ in range(CALLS)]
    assert abs(realised(decisions) - 0.4) <= POINTS


def test_sessions_that_stay_on_the_strongest_tier_count() -> None:
    gateway, draw = Gateway(0.3), random.Random(3)
    decisions = [
        gateway.decide(Task.from_messages(text(draw), session=f"s{number}")) for number in range(400) for _ in range(6)
    ]
    assert abs(realised(decisions) - 0.3) <= POINTS
    tiers = [decision.tier for decision in decisions]
    for start in range(0, len(tiers), 6):
        turns = tiers[start : start + 6]
        assert "big" not in turns or set(turns[turns.index("big") :]) == {"big"}, "held at no session's cost"


def test_several_processes_hold_it_each_and_together() -> None:
    gateways, draw = [Gateway(0.2) for _ in range(3)], random.Random(4)
    decisions = [draw.choice(gateways).decide(Task.from_messages(text(draw))) for _ in range(3 * CALLS)]
    assert abs(realised(decisions) - 0.2) <= POINTS


def test_an_agent_has_a_share_of_its_own_where_its_preset_says() -> None:
    draw = random.Random(5)
    qa = PRESETS["qa"].model_copy(update={"routing": PRESETS["qa"].routing.model_copy(update={"strong_share": 0.6})})
    gateway = Gateway(0.1, presets={**PRESETS, "qa": qa})
    by_agent: dict[str, list[Decision]] = {"qa": [], "spec": []}
    for _ in range(CALLS):
        for agent, decisions in by_agent.items():
            decisions.append(gateway.decide(Task.from_messages(text(draw), agent=agent)))
    assert abs(realised(by_agent["qa"]) - 0.6) <= POINTS
    assert abs(realised(by_agent["spec"]) - 0.1) <= POINTS
    assert set(gateway.shares) == {("", ""), ("", "qa")}


def test_owners_do_not_move_each_others_threshold() -> None:
    gateway, draw = Gateway(0.2), random.Random(6)
    alone = Gateway(0.2)
    for number in range(600):
        mine = Task.from_messages(text(draw), owner="mine")
        assert gateway.decide(mine) == alone.decide(mine), number
        gateway.decide(Task.from_messages("Prove that 12 > 9, step by step. " * 20, owner="other"))


def test_requests_that_want_the_best_get_it_and_the_others_make_up_for_it() -> None:
    gateway, draw = Gateway(0.3), random.Random(7)
    decisions = []
    for number in range(CALLS):
        wishes = Wishes(quality="best") if number % 10 == 0 else Wishes()
        decisions.append(gateway.decide(Task.from_messages(text(draw), wishes=wishes)))
    assert {each.tier for each in decisions[::10]} == {"big"}
    assert abs(realised(decisions) - 0.3) <= POINTS


def test_without_a_share_or_a_choice_nothing_is_counted() -> None:
    assert Gateway(None).decide(Task.from_messages("x")).share is None
    assert Gateway(0.5, tiers=ONE_TIER).decide(Task.from_messages("x")).share is None


def test_a_strongest_tier_that_is_down_costs_no_share() -> None:
    down = (*THREE_TIERS[:2], replace(THREE_TIERS[2], ready=False))
    gateway = Gateway(0.5, tiers=down)
    assert {gateway.decide(Task.from_messages("x")).tier for _ in range(20)} <= {"small", "middle"}
    assert not gateway.shares


def test_the_state_stays_within_its_bounds() -> None:
    share = Share()
    for _ in range(10_000):
        share = share.after(ShareCall(("", ""), 0.1, share.threshold, 5.0, is_strong=True))
    assert 5.0 <= share.threshold < 5.1
    assert share.calls == 10_000


@pytest.mark.parametrize("middle", [-3.0, -1.4, 1.4])
def test_gains_may_be_of_any_size(middle: float) -> None:
    """A price that is weighed four times and a wait that is weighed at all put gains far below -1."""
    share, draw, strong = Share(), random.Random(8), 0
    for _ in range(CALLS):
        gain = draw.gauss(middle, 0.1)
        strong += (is_strong := gain > share.threshold)
        share = share.after(ShareCall(("", ""), 0.2, share.threshold, gain, is_strong=is_strong))
    assert abs(strong / CALLS - 0.2) <= POINTS

"""Sessions: scripted conversations never fall to something weaker without a reason that says so."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from adapters_registry.model import RegistrySnapshot
from router import BaseTier, Decision, Evidence, Reason, Router, SessionRoute, Tally, Task, Wishes
from router.evidence import BANDS
from tests.router.snapshots import LEGAL, PRESETS, THREE_TIERS, registry, snapshot

ROUTER = Router.from_presets(PRESETS)
EASY, THANKS = "Hello there", "And the second one?"
HARD = "Prove the equation x^2 + y^2 = z^2 step by step, compare the algorithms and explain why it must hold. " * 8
LEGAL_TEXT = "Does the indemnification clause survive termination of this Agreement?"
SECURITY_TEXT = "Is CVE-2024-1234 exploitable, and which severity does the vulnerability have?"
TEXTS = (EASY, THANKS, HARD, LEGAL_TEXT, SECURITY_TEXT)
TOLD = {Reason.BUDGET, Reason.ENGINE_DOWN, Reason.COLD_FALLBACK}


class Conversation:
    """A client that sends all its messages again each turn, and the gateway's memory of sessions."""

    def __init__(self, session: str | None = None, **parts) -> None:
        self.messages: list[dict] = []
        self.session = session
        self.sessions: dict = {}
        self.parts = {"tiers": THREE_TIERS} | parts

    def say(self, text: str, wishes: Wishes = Wishes(), **parts) -> Decision:  # noqa: B008 - immutable
        self.messages.append({"role": "user", "content": text})
        decision = self.decide(wishes, **parts)
        self.messages.append({"role": "assistant", "content": "ok " * 50})
        return decision

    def decide(self, wishes: Wishes = Wishes(), **parts) -> Decision:  # noqa: B008 - immutable
        task = Task.from_messages(self.messages, session=self.session, wishes=wishes)
        now = snapshot(**self.parts | parts, sessions=self.sessions)
        decision = ROUTER.decide(task, now)
        self.sessions[task.session_key] = decision.session_route
        return decision


def rank(decision: Decision) -> int:
    return [tier.name for tier in THREE_TIERS].index(decision.tier)


def is_downgrade(before: Decision, after: Decision) -> bool:
    """As a user would call it: a base of a lower tier, or the agent's adapter given up for its own base."""
    if after.adapter is not None:
        return False
    if before.adapter is None:
        return rank(after) < rank(before)
    return before.agent == after.agent and rank(after) <= rank(before)


@pytest.mark.parametrize("session", [None, "given"])
@pytest.mark.parametrize("seed", range(40))
def test_scripted_conversations_have_no_downgrade_without_a_reason(session: str | None, seed: int) -> None:
    draw = random.Random(seed)
    conversation = Conversation(session)
    floor = None
    for _ in range(12):
        ready = tuple(replace(tier, ready=draw.random() < 0.85) for tier in THREE_TIERS)
        wishes = Wishes(max_cost=draw.choice([None, None, None, 1e-5, 1e-3]), quality=draw.choice([None, "economy"]))
        tiers = ready if any(tier.ready for tier in ready) else THREE_TIERS
        now = conversation.say(draw.choice(TEXTS), wishes, tiers=tiers)
        if floor is not None and is_downgrade(floor, now):
            assert now.reason in TOLD, (floor.tier, now.tier, now.reason)
        else:
            floor = now


def test_a_conversation_rises_when_it_needs_to_and_stays() -> None:
    conversation = Conversation()
    told = [(each.tier, each.reason) for each in map(conversation.say, (EASY, HARD, EASY, THANKS, HARD))]
    assert told == [
        ("small", Reason.OUT_OF_SCOPE),
        ("big", Reason.OUT_OF_SCOPE),
        ("big", Reason.SESSION),
        ("big", Reason.SESSION),
        ("big", Reason.OUT_OF_SCOPE),
    ]


def test_a_session_comes_back_to_its_tier_when_the_engine_does() -> None:
    conversation = Conversation()
    down = (*THREE_TIERS[:2], replace(THREE_TIERS[2], ready=False))
    assert conversation.say(HARD).tier == "big"
    fallen = conversation.say(THANKS, tiers=down)
    assert (fallen.tier, fallen.reason) == ("small", Reason.ENGINE_DOWN)
    assert conversation.say(THANKS).tier == "big"


def test_a_session_comes_back_to_its_tier_after_a_request_with_a_budget() -> None:
    conversation = Conversation()
    assert conversation.say(HARD).tier == "big"
    assert conversation.say(EASY, Wishes(max_cost=1e-4)).reason is Reason.BUDGET
    assert conversation.say(EASY).tier == "big"


def test_a_tool_loop_is_one_conversation_though_the_user_said_one_thing() -> None:
    conversation = Conversation()
    conversation.messages.append({"role": "user", "content": HARD})
    assert conversation.decide().tier == "big"
    route = dict(conversation.sessions)
    conversation.messages += [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]
    key = Task.from_messages(conversation.messages).session_key
    assert key in route
    held = conversation.decide(wishes=Wishes(quality="economy"))
    assert (held.tier, held.reason) == ("big", Reason.SESSION)


def test_a_growing_conversation_without_an_id_keeps_its_name() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "one"}]
    names = {Task.from_messages(messages).session}
    for number in range(5):
        messages += [{"role": "assistant", "content": "ok"}, {"role": "user", "content": f"turn {number}"}]
        names.add(Task.from_messages(messages).session)
    assert len(names) == 1
    assert Task.from_messages(messages[:2]).session != Task.from_messages(messages[1:]).session


def test_a_weaker_base_is_a_downgrade_whatever_is_thought_of_it() -> None:
    praised = Evidence({("", "tiny"): [Tally(500, 485, 200)] * BANDS})
    conversation = Conversation()
    assert conversation.say(HARD).tier == "big"
    now = conversation.say(HARD + "!", evidence={"": praised})
    assert now.candidates[0].probability > now.candidates[-1].probability
    assert (now.tier, now.reason) == ("big", Reason.SESSION)


def test_a_floor_that_the_agents_preset_leaves_out_holds() -> None:
    doubted = Evidence({("legal-agent", LEGAL.engine_name): [Tally(500, 250, 450)] * BANDS})
    strict = PRESETS["legal"].routing.model_copy(update={"strong_above": 0.0})
    presets = {**PRESETS, "legal": PRESETS["legal"].model_copy(update={"routing": strict})}
    task = Task.from_messages(LEGAL_TEXT, model="auto:legal", session="s", wishes=Wishes(quality="economy"))
    parts = {"tiers": THREE_TIERS, "presets": presets, "evidence": {"": doubted}}
    assert ROUTER.decide(task, snapshot(**parts)).adapter is LEGAL
    floor = SessionRoute("legal-agent", "middle", adapted=False)
    now = ROUTER.decide(task, snapshot(**parts, sessions={("", "s"): floor}))
    assert (now.tier, now.reason) == ("big", Reason.SESSION)


def test_an_adapter_that_turned_out_bad_is_left_for_something_better() -> None:
    bad = Evidence({("legal-agent", LEGAL.engine_name): [Tally(500, 50, 450)] * BANDS})
    conversation = Conversation()
    assert conversation.say(LEGAL_TEXT).adapter is LEGAL
    now = conversation.say(LEGAL_TEXT, evidence={"": bad})
    assert (now.adapter, now.reason) == (None, Reason.TIER)


def test_an_agent_without_an_adapter_says_why_it_leaves_the_sessions_adapter() -> None:
    conversation = Conversation()
    conversation.say(LEGAL_TEXT)
    now = conversation.say("Write a tagline and an Instagram caption for our marketing campaign.")
    assert (now.adapter, now.reason) == (None, Reason.NO_ADAPTER)


# -- prompt cache ------------------------------------------------------------------------------------------------------

NEAR = (BaseTier("small", "tiny", 1.0), BaseTier("big", "large", 1.2))


def waits(chars: int, route: SessionRoute) -> dict[str, float]:
    task = Task.from_messages(EASY, session="s")
    now = snapshot(NEAR, sessions={("", "s"): replace(route, prompt_chars=chars)})
    return {each.tier: each.wait_s for each in ROUTER.decide(task, now).candidates}


def test_switching_costs_what_the_prompt_takes_to_be_read_again() -> None:
    on_small = SessionRoute(None, "small", adapted=False)
    assert waits(0, on_small) == {"small": 0.0, "big": 0.0}
    short, long = waits(4_000, on_small), waits(400_000, on_small)
    assert short["small"] == long["small"] == 0.0
    assert long["big"] == pytest.approx(100 * short["big"]) == pytest.approx(25.0)


def test_a_long_conversation_stays_where_its_prefix_is_cached() -> None:
    text = "Compare the two and explain why; calculate 12 * 3 + 4 step by step."
    task = Task.from_messages(text, session="s")
    tiers = {}
    for chars in (0, 400_000):
        route = SessionRoute(None, "small", adapted=False, prompt_chars=chars)
        tiers[chars] = ROUTER.decide(task, snapshot(NEAR, sessions={("", "s"): route})).tier
    assert tiers == {0: "big", 400_000: "small"}


def test_a_retired_adapter_leaves_its_session_to_the_base_with_a_reason() -> None:
    conversation = Conversation()
    conversation.say(LEGAL_TEXT)
    known = registry()
    agents = {**known.agents, "legal-agent": replace(known.agents["legal-agent"], champion=None)}
    without: RegistrySnapshot = replace(known, agents=agents)
    now = conversation.say(LEGAL_TEXT, registry=without)
    assert (now.adapter, now.reason) == (None, Reason.NO_ADAPTER)

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.agents import AgentPreset, Routing
from router import BaseTier, Decision, Reason, Router, SessionRoute, Task, UnknownModel
from tests.router.snapshots import (
    LEGAL,
    LEGAL_OLD,
    PRESETS,
    SECURITY,
    SUPPORT,
    SUPPORT_NEXT,
    THREE_TIERS,
    TRIAL,
    registry,
    snapshot,
)

ROUTER = Router.from_presets(PRESETS)
EASY = "Hello there"
LEGAL_TEXT = "Does the indemnification clause survive termination of this Agreement?"
HARD = (
    "Prove the theorem step by step, compare the complexity of the algorithms, derive the equation x^2 + y^2 = z^2 "
    "and explain why it must hold for at least 12 cases; return JSON with exactly 4 fields.\n1. first\n2. second\n"
) * 6


def decide(model: str = "auto", text: str = EASY, tiers=None, agent=None, session=None, **parts) -> Decision:
    task = Task.from_messages(text, model=model, agent=agent, session=session)
    return ROUTER.decide(task, snapshot(tiers, **parts) if tiers else snapshot(**parts))


def preset(**routing) -> AgentPreset:
    base = routing.pop("base", None)
    return AgentPreset(name="legal", description="d", base=base, routing=Routing(**routing))


# -- what `model` may name ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "adapter", "reason", "agent"),
    [
        ("tiny", None, "explicit", None),
        ("legal-agent", LEGAL, "champion", "legal-agent"),
        ("legal", LEGAL, "champion", "legal-agent"),
        ("support", SUPPORT, "champion", "support"),
        ("support-agent", SUPPORT, "champion", "support"),
        ("helpdesk", SUPPORT, "explicit", "support"),
        ("qa-trial", TRIAL, "explicit", "qa"),
        ("legal-agent@champion", LEGAL, "explicit", "legal-agent"),
        ("legal@champion", LEGAL, "explicit", "legal-agent"),
        ("helpdesk@champion", SUPPORT, "explicit", "support"),
        ("support@challenger", SUPPORT_NEXT, "explicit", "support"),
        (LEGAL_OLD.engine_name, LEGAL_OLD, "explicit", "legal-agent"),
        ("legal-agent@aaaaaa1", LEGAL_OLD, "explicit", "legal-agent"),
        ("legal-agent@AAAAAA2222", LEGAL, "explicit", "legal-agent"),
        (f"legal-agent@{LEGAL.digest}", LEGAL, "explicit", "legal-agent"),
        ("auto:legal", LEGAL, "champion", "legal-agent"),
        ("auto:Legal Agent", LEGAL, "champion", "legal-agent"),
        ("auto:qa", None, "no_adapter", "qa"),
        ("qa", None, "no_adapter", "qa"),
        ("marketing", None, "no_adapter", "marketing"),
        ("auto:unheard-of", None, "no_adapter", "unheard-of"),
        ("auto", None, "out_of_scope", None),
    ],
)
def test_each_form_of_model_goes_where_the_contract_says(model, adapter, reason, agent):
    decision = decide(model)
    assert (decision.adapter, decision.reason, decision.agent) == (adapter, reason, agent)
    assert decision.base == "tiny"


def test_only_a_digest_pins_the_version():
    assert decide(LEGAL_OLD.engine_name).exact_version
    assert decide("legal-agent@aaaaaa1").exact_version
    assert not decide("legal-agent@champion").exact_version
    assert not decide("helpdesk").exact_version


@pytest.mark.parametrize(
    ("model", "nearest"),
    [
        ("leagl-agent", "legal-agent"),
        ("tinny", "tiny"),
        ("Auto", "auto"),
        ("helpdesk@123456", "helpdesk"),
        ("legal-agent@aaaaaa", LEGAL.engine_name),  # two versions begin so
        ("legal-agent@aaaaa", "legal-agent"),  # too short to mean a version
        ("legal-agent@latest", "legal-agent"),
        ("helpdesk-2@champion", "helpdesk-2"),  # the champion is another adapter
        ("qa@champion", "qa"),
        ("lost@eeeeee", "lost"),  # no engine serves its base
    ],
)
def test_an_unknown_model_is_refused_with_the_nearest_names(model, nearest):
    with pytest.raises(UnknownModel) as refused:
        decide(model)
    assert any(nearest in name for name in refused.value.nearest)
    assert len(refused.value.nearest) <= 3


@pytest.mark.parametrize("model", ["", "auto:", "@", "@champion", "legal-agent@", "../etc/passwd", "a" * 100_000, "\0"])
def test_malformed_models_are_unknown_and_cheap(model):
    began = time.perf_counter()
    with pytest.raises(UnknownModel):
        decide(model)
    assert time.perf_counter() - began < 0.5


def test_an_agent_named_in_a_header_goes_before_recognition_and_after_the_model():
    assert decide("auto", LEGAL_TEXT, agent="security").adapter is SECURITY
    assert decide("auto:legal", agent="security").adapter is LEGAL
    assert decide("legal", agent="security").adapter is LEGAL
    assert decide("helpdesk", agent="security").adapter is SUPPORT
    assert decide("tiny", agent="security").adapter is None


@pytest.mark.parametrize("hint", ["x\r\nset-cookie: a=b", "../../x", "☃", " ", "a" * 65])
def test_a_hint_that_is_no_name_never_reaches_the_decision(hint):
    decision = decide(agent=hint)
    assert (decision.agent, decision.adapter, decision.reason) == (None, None, Reason.NO_ADAPTER)


def test_a_base_is_explicit_also_with_its_engine_down():
    down = (replace(THREE_TIERS[0], ready=False), *THREE_TIERS[1:])
    decision = decide("tiny", tiers=down)
    assert (decision.base, decision.reason) == ("tiny", Reason.EXPLICIT)


# -- recognition -------------------------------------------------------------------------------------------------------


def test_a_task_that_names_no_agent_goes_to_the_one_it_sounds_like():
    decision = decide(text=LEGAL_TEXT)
    assert (decision.adapter, decision.reason) == (LEGAL, Reason.CHAMPION)
    assert 0.5 <= decision.confidence < 1


def test_a_recognised_agent_without_an_adapter_goes_to_the_base():
    decision = decide(text="Write a tagline and an Instagram caption for our marketing campaign.")
    assert (decision.agent, decision.adapter, decision.reason) == ("marketing", None, Reason.NO_ADAPTER)


# -- tiers -------------------------------------------------------------------------------------------------------------


def test_difficulty_picks_the_tier():
    easy, hard = decide(tiers=THREE_TIERS), decide(text=HARD, tiers=THREE_TIERS)
    assert easy.difficulty < 0.2
    assert hard.difficulty > 0.8
    assert (easy.tier, hard.tier) == ("small", "big")
    assert easy.reason is hard.reason is Reason.OUT_OF_SCOPE


def test_tiers_without_prices_count_as_dearer_the_stronger_they_are():
    free = tuple(replace(tier, cost_per_mtok=0.0) for tier in THREE_TIERS)
    assert decide(tiers=free).tier == "small"
    assert decide(text=HARD, tiers=free).tier == "big"


@pytest.mark.parametrize("text", [EASY, HARD])
@pytest.mark.parametrize("warm", [True, False])
def test_by_the_prior_an_agents_adapter_goes_before_every_base(text, warm):
    decision = decide("auto:legal", text, tiers=THREE_TIERS, is_warm=lambda _: warm)
    assert decision.adapter is LEGAL
    assert decision.tier == "small"


def test_a_preset_that_expects_little_of_its_adapter_lets_hard_tasks_go_to_a_base():
    parts = {"tiers": THREE_TIERS, "presets": {"legal": preset(adapter_lift=0.0)}}
    decision = decide("auto:legal", HARD, **parts)
    assert (decision.tier, decision.reason) == ("big", Reason.TIER)


def test_a_preset_sends_hard_tasks_without_adapter_to_the_strongest_tier():
    parts = {"tiers": THREE_TIERS, "presets": {"qa": preset(strong_above=0.05)}}
    assert decide("auto:qa", EASY, **parts).tier == "big"
    parts["presets"] = {"legal": preset(strong_above=0.05)}
    assert decide("auto:legal", EASY, **parts).adapter is LEGAL


def test_a_presets_base_answers_while_there_is_no_adapter():
    parts = {"tiers": THREE_TIERS, "presets": {"qa": preset(base="medium"), "spec": preset(base="not-served")}}
    assert decide("auto:qa", HARD, **parts).base == "medium"
    assert decide("auto:spec", HARD, **parts).base == "large"


def test_an_adapter_whose_engine_failed_leaves_its_agent_to_another_base():
    down = (replace(THREE_TIERS[0], ready=False), *THREE_TIERS[1:])
    decision = decide("legal-agent", tiers=down)
    assert (decision.adapter, decision.base, decision.reason) == (None, "medium", Reason.ENGINE_DOWN)


def test_an_adapter_whose_base_is_not_served_leaves_its_agent_to_another_base():
    assert decide("lost-agent").reason is Reason.ENGINE_DOWN
    no_slots = (BaseTier("base", "tiny", slots=0),)
    assert decide("legal-agent", tiers=no_slots).reason is Reason.ENGINE_DOWN


def test_with_every_engine_down_the_route_is_what_it_would_be():
    down = tuple(replace(tier, ready=False) for tier in THREE_TIERS)
    assert decide("auto", tiers=down).tier == "small"
    assert decide("legal-agent", tiers=down).adapter is LEGAL


def test_a_router_needs_a_tier():
    with pytest.raises(ValueError, match="at least one base tier"):
        snapshot(tiers=())


# -- sessions ----------------------------------------------------------------------------------------------------------


def in_session(route: SessionRoute, text: str, **parts) -> Decision:
    return decide(text=text, session="s", sessions={("", "s"): route}, **parts)


def test_a_session_stays_on_its_tier_when_the_next_task_is_easy():
    decision = in_session(SessionRoute(None, "big", adapted=False), EASY, tiers=THREE_TIERS)
    assert (decision.tier, decision.reason) == ("big", Reason.SESSION)


def test_a_session_may_rise():
    decision = in_session(SessionRoute(None, "small", adapted=False), HARD, tiers=THREE_TIERS)
    assert (decision.tier, decision.reason) == ("big", Reason.OUT_OF_SCOPE)


def test_a_follow_up_that_sounds_like_nothing_stays_with_the_sessions_agent():
    decision = in_session(SessionRoute("legal-agent", "small", adapted=True), "And the second one?", tiers=THREE_TIERS)
    assert (decision.adapter, decision.reason) == (LEGAL, Reason.SESSION)


def test_another_agents_task_within_a_session_goes_to_that_agent():
    decision = in_session(SessionRoute("security-agent", "small", adapted=True), LEGAL_TEXT, tiers=THREE_TIERS)
    assert (decision.adapter, decision.reason) == (LEGAL, Reason.CHAMPION)


def test_an_agents_adapter_is_no_downgrade_from_a_strong_base():
    decision = in_session(SessionRoute(None, "big", adapted=False), LEGAL_TEXT, tiers=THREE_TIERS)
    assert decision.adapter is LEGAL


def test_a_session_whose_tier_failed_goes_on_elsewhere():
    down = (*THREE_TIERS[:2], replace(THREE_TIERS[2], ready=False))
    decision = in_session(SessionRoute(None, "big", adapted=False), EASY, tiers=down)
    assert (decision.tier, decision.reason) == ("small", Reason.ENGINE_DOWN)


def test_a_session_is_its_owners_alone():
    sessions = {("alice", "s"): SessionRoute(None, "big", adapted=False)}
    now = snapshot(THREE_TIERS, sessions=sessions)
    task = Task.from_messages(EASY, session="s", owner="mallory")
    assert ROUTER.decide(task, now).tier == "small"
    assert ROUTER.decide(replace(task, owner="alice"), now).tier == "big"


def test_without_an_id_later_turns_belong_to_the_conversation_and_first_turns_begin_one():
    turns = [
        {"role": "user", "content": HARD},
        {"role": "assistant", "content": "done"},
        {"role": "user", "content": "thanks"},
    ]
    first = ROUTER.decide(Task.from_messages(turns[:1]), snapshot(THREE_TIERS))
    assert first.session_route == SessionRoute(None, "big", adapted=False, prompt_chars=len(HARD))
    sessions = {Task.from_messages(turns[:1]).session_key: first.session_route}
    now = snapshot(THREE_TIERS, sessions=sessions)
    assert ROUTER.decide(Task.from_messages(turns), now).reason is Reason.SESSION
    assert ROUTER.decide(Task.from_messages(turns[:1]), now).reason is Reason.OUT_OF_SCOPE


def test_explicit_routes_neither_read_nor_mark_a_session():
    sessions = {("", "s"): SessionRoute("legal-agent", "big", adapted=True)}
    decision = decide("tiny", session="s", tiers=THREE_TIERS, sessions=sessions)
    assert decision.reason is Reason.EXPLICIT
    assert decision.session_route is None


# -- properties --------------------------------------------------------------------------------------------------------

MODELS = st.one_of(
    st.sampled_from(["auto", "tiny", "legal", "auto:legal", "helpdesk", LEGAL.engine_name]), st.text(max_size=40)
)
ROUTES = st.none() | st.builds(
    SessionRoute,
    st.sampled_from([None, "legal-agent", "gone"]),
    st.sampled_from(["small", "big", "gone"]),
    st.booleans(),
)


@given(text=st.text(), model=MODELS, agent=st.none() | st.text(max_size=80), route=ROUTES)
def test_nothing_but_unknown_model_is_ever_raised_and_the_decision_is_servable(text, model, agent, route):
    now = snapshot(THREE_TIERS, sessions={("", "s"): route} if route else {})
    task = Task.from_messages(text, model=model, agent=agent, session="s")
    try:
        decision = ROUTER.decide(task, now)
    except UnknownModel:
        return
    assert 0 <= decision.difficulty <= 1
    tier = next(each for each in THREE_TIERS if each.name == decision.tier)
    assert tier.base_name == decision.base
    assert decision.adapter is None or decision.adapter.base == decision.base
    assert decision == ROUTER.decide(task, now)


def test_an_explanation_holds_what_the_decision_was_made_from():
    told = decide("auto:legal", LEGAL_TEXT, tiers=THREE_TIERS).to_dict()
    assert told["adapter"] == LEGAL.engine_name
    assert told["reason"] == "champion"
    assert [each["tier"] for each in told["candidates"]] == ["small", "small", "middle", "big"]
    best = max(told["candidates"], key=lambda each: each["utility"])
    assert best["adapter"] == LEGAL.engine_name
    assert told["features"]["questions"] == 1


def test_a_decision_on_a_prompt_of_512_tokens_takes_under_two_milliseconds():
    text = (LEGAL_TEXT + " ") * 29
    task, now = Task.from_messages(text), snapshot(THREE_TIERS)
    times = []
    for _ in range(200):
        began = time.perf_counter()
        ROUTER.decide(task, now)
        times.append(time.perf_counter() - began)
    assert sorted(times)[100] < 2e-3


def test_eight_megabytes_cost_no_more_than_a_page():
    task = Task.from_messages("x 1. ? must {" * 650_000)
    began = time.perf_counter()
    ROUTER.decide(task, snapshot())
    assert time.perf_counter() - began < 0.1


def test_the_registrys_newest_answers_for_a_name_that_is_also_an_agent_without_champion():
    plain = registry()
    agents = dict(plain.agents) | {"legal-agent": replace(plain.agents["legal-agent"], champion=None)}
    decision = decide("legal-agent", registry=replace(plain, agents=agents))
    assert (decision.adapter, decision.reason) == (LEGAL, Reason.EXPLICIT)

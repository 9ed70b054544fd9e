"""A share of an agent's sessions tries out its canary, and each session stays where it is."""

from __future__ import annotations

import time
from dataclasses import replace

from adapters_registry.model import RegistrySnapshot, State
from router import Decision, Reason, Router, Task
from tests.router.snapshots import PRESETS, SUPPORT, SUPPORT_NEXT, registry, snapshot

ROUTER = Router.from_presets(PRESETS)
SHARE = 0.1
SESSIONS = [f"session-{number}" for number in range(4000)]


def decide(session: str, share: float = SHARE, model: str = "support", **parts) -> Decision:
    task = Task.from_messages("Hello there", model=model, session=session)
    return ROUTER.decide(task, snapshot(canary_share=share, **parts))


def with_challenger(state: State, base: str = "tiny") -> RegistrySnapshot:
    known = registry()
    challenger = replace(SUPPORT_NEXT, state=state, base=base)
    return replace(known, versions={**known.versions, challenger.engine_name: challenger})


def tried(share: float, **parts) -> set[str]:
    return {session for session in SESSIONS if decide(session, share, **parts).reason is Reason.CANARY}


def test_the_share_of_sessions_goes_to_the_canary_and_the_rest_to_the_champion() -> None:
    decisions = [decide(session) for session in SESSIONS]
    on_canary = [decision for decision in decisions if decision.reason is Reason.CANARY]
    assert abs(len(on_canary) / len(SESSIONS) - SHARE) < 0.015
    assert all((decision.adapter == SUPPORT_NEXT) == (decision.reason is Reason.CANARY) for decision in decisions)
    assert {decision.adapter for decision in decisions} == {SUPPORT, SUPPORT_NEXT}


def test_a_session_stays_with_its_arm() -> None:
    sessions: dict = {}
    for session in SESSIONS[:200]:
        task = Task.from_messages("Hello there", model="support", session=session)
        first = ROUTER.decide(task, snapshot(canary_share=0.5, sessions=sessions))
        sessions[task.session_key] = first.session_route
        for text in ("Where is my parcel?", "Thanks"):
            task = Task.from_messages(text, model="auto", agent="support", session=session)
            later = ROUTER.decide(task, snapshot(canary_share=0.5, sessions=sessions))
            assert later.adapter == first.adapter


def test_a_larger_share_keeps_the_sessions_of_a_smaller_one() -> None:
    assert tried(0.1) < tried(0.3) < tried(1.0) == set(SESSIONS)


def test_another_canary_is_tried_by_other_sessions() -> None:
    known = registry()
    other = replace(SUPPORT_NEXT, digest="9" * 64)
    agents = {**known.agents, "support": replace(known.agents["support"], challenger=other.engine_name)}
    moved = replace(known, versions={**known.versions, other.engine_name: other}, agents=agents)
    first, second = tried(SHARE), tried(SHARE, registry=moved)
    assert len(first & second) < 0.3 * len(first)


def test_no_canary_is_tried_without_a_share_or_before_its_state_says_so() -> None:
    assert not tried(0.0)
    for state in (State.CANDIDATE, State.VALIDATED):
        assert not tried(1.0, registry=with_challenger(state))


def test_a_canary_whose_base_no_engine_serves_is_not_tried() -> None:
    assert not tried(1.0, registry=with_challenger(State.CANARY, base="gone"))


def test_who_names_a_version_or_an_alias_gets_it() -> None:
    for model, adapter in (("support@champion", SUPPORT), (SUPPORT.engine_name, SUPPORT), ("helpdesk", SUPPORT)):
        decision = decide("any", 1.0, model)
        assert (decision.adapter, decision.reason) == (adapter, Reason.EXPLICIT)


def test_a_canary_costs_no_time() -> None:
    shot = snapshot(canary_share=SHARE)
    tasks = [Task.from_messages("Hello there", model="support", session=session) for session in SESSIONS[:500]]
    took = []
    for task in tasks:
        began = time.perf_counter()
        ROUTER.decide(task, shot)
        took.append(time.perf_counter() - began)
    assert sorted(took)[len(took) // 2] < 0.002

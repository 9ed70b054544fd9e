from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adapters_registry import AdapterNotFound, AdapterRegistry, AdapterVersion, Alias, LifecycleError, State
from tests.adapters_registry.build import write_adapter

Add = Callable[..., AdapterVersion]


@pytest.fixture
def add(any_registry: AdapterRegistry, tmp_path: Path) -> Add:
    def register(seed: int = 0, name: str = "legal", **options: object) -> AdapterVersion:
        source = write_adapter(tmp_path / f"seed-{seed}", seed)
        return any_registry.register(name, source, **options)  # type: ignore[arg-type]

    return register


def champion(registry: AdapterRegistry, agent: str = "legal") -> str | None:
    return registry.snapshot().agents[agent].champion


def states(registry: AdapterRegistry) -> dict[str, State]:
    return {version.engine_name: version.state for version in registry.list_versions(include_retired=True)}


def test_the_first_version_of_an_agent_becomes_champion(any_registry: AdapterRegistry, add: Add) -> None:
    first = add(0)
    second = add(1)
    assert (first.state, second.state) == (State.CHAMPION, State.VALIDATED)
    assert champion(any_registry) == first.engine_name
    assert any_registry.snapshot().champion("legal") == first
    assert any_registry.get("legal") == first


def test_an_alias_can_be_asked_for(any_registry: AdapterRegistry, add: Add) -> None:
    assert add(0, alias="none").state is State.VALIDATED
    assert champion(any_registry) is None
    assert any_registry.get("legal").state is State.VALIDATED
    first = add(1, alias="champion")
    challenger = add(2, alias="challenger")
    aliases = any_registry.snapshot().agents["legal"]
    assert (aliases.champion, aliases.challenger) == (first.engine_name, challenger.engine_name)
    assert challenger.state is State.CANDIDATE
    with pytest.raises(LifecycleError, match="none of champion"):
        add(3, alias="king")


def test_promotion_moves_the_alias_at_once(any_registry: AdapterRegistry, add: Add) -> None:
    first, second = add(0), add(1)
    began = time.monotonic()
    promoted = any_registry.promote("legal", actor="ana")
    assert time.monotonic() - began < 1.0
    assert (promoted.digest, promoted.state) == (second.digest, State.CHAMPION)
    assert states(any_registry) == {first.engine_name: State.CANDIDATE, second.engine_name: State.CHAMPION}
    assert any_registry.resolve("legal@champion") == promoted
    assert any_registry.resolve("legal") == promoted
    latest = any_registry.audit(1)[0]
    assert (latest.actor, latest.action, latest.version) == ("ana", "promote", second.version)
    assert first.engine_name in latest.detail


def test_promotion_of_the_champion_changes_nothing(any_registry: AdapterRegistry, add: Add) -> None:
    first = add(0)
    before = any_registry.snapshot()
    assert any_registry.promote("legal", first.version, actor="ana").state is State.CHAMPION
    assert any_registry.snapshot() is before


def test_a_challenger_that_wins_leaves_its_seat(any_registry: AdapterRegistry, add: Add) -> None:
    add(0)
    challenger = add(1, alias="challenger")
    any_registry.promote("legal", challenger.version, actor="ana")
    aliases = any_registry.snapshot().agents["legal"]
    assert (aliases.champion, aliases.challenger) == (challenger.engine_name, None)
    with pytest.raises(LifecycleError, match="cannot challenge itself"):
        any_registry.promote("legal", challenger.version, actor="ana", alias=Alias.CHALLENGER)


def test_rollback_walks_back_and_ends(any_registry: AdapterRegistry, add: Add) -> None:
    versions = [add(seed, alias="champion") for seed in range(4)]
    any_registry.retire("legal", versions[1].version, actor="ana")
    assert any_registry.rollback("legal", actor="ana").digest == versions[2].digest
    assert any_registry.rollback("legal", actor="ana").digest == versions[0].digest
    for _ in range(2):
        with pytest.raises(LifecycleError) as caught:
            any_registry.rollback("legal", actor="ana")
        assert caught.value.code == "nothing_to_roll_back"
    assert champion(any_registry) == versions[0].engine_name
    any_registry.promote("legal", versions[3].version, actor="ana")
    assert any_registry.rollback("legal", actor="ana").digest == versions[0].digest


def test_rollback_does_not_return_to_what_was_undone(any_registry: AdapterRegistry, add: Add) -> None:
    good, bad, fix = add(0), add(1, alias="champion"), add(2, alias="none")
    any_registry.rollback("legal", actor="ana")
    any_registry.promote("legal", fix.version, actor="ana")
    assert any_registry.rollback("legal", actor="ana").digest == good.digest
    assert states(any_registry)[bad.engine_name] is State.CANDIDATE


def test_rollback_after_the_champion_was_retired(any_registry: AdapterRegistry, add: Add) -> None:
    first, second = add(0), add(1, alias="champion")
    any_registry.retire("legal", second.version, actor="ana")
    assert champion(any_registry) is None
    assert any_registry.rollback("legal", actor="ana").digest == first.digest


def test_rollback_by_agent_or_adapter(any_registry: AdapterRegistry, add: Add) -> None:
    first = add(0, "contracts-v1", agent="legal")
    add(1, "contracts-v2", agent="legal", alias="champion")
    assert any_registry.rollback("contracts-v2", actor="ana") == any_registry.get("contracts-v1")
    any_registry.promote("contracts-v2", actor="ana")
    assert any_registry.rollback("legal", actor="ana").digest == first.digest
    with pytest.raises(AdapterNotFound, match="did you mean"):
        any_registry.rollback("contracts-v3", actor="ana")


def test_retiring_a_name_takes_all_of_it_out(any_registry: AdapterRegistry, add: Add) -> None:
    first, _ = add(0, pin=True), add(1, alias="challenger")
    retired = any_registry.retire("legal", actor="ana")
    assert {version.state for version in retired} == {State.RETIRED}
    assert not any(version.pinned for version in retired)
    snapshot = any_registry.snapshot()
    assert (dict(snapshot.versions), dict(snapshot.newest)) == ({}, {})
    assert snapshot.agents["legal"].champion is None
    assert snapshot.agents["legal"].challenger is None
    assert first.path.exists()
    assert any_registry.list_versions("legal") == ()
    assert len(any_registry.list_versions("legal", include_retired=True)) == 2
    for action in (any_registry.retire, any_registry.promote):
        with pytest.raises(LifecycleError, match="retired"):
            action("legal", actor="ana")
        with pytest.raises(LifecycleError, match="retired"):
            action("legal", first.version, actor="ana")
    with pytest.raises(AdapterNotFound, match="agent 'legal' has none in service"):
        any_registry.get("legal")


def test_the_same_content_again_is_the_same_version(any_registry: AdapterRegistry, add: Add) -> None:
    first = add(0)
    before = any_registry.snapshot()
    assert add(0) == first
    assert any_registry.snapshot() is before
    assert add(0, pin=True).pinned
    second = add(1)
    assert add(1, alias="champion").digest == second.digest
    assert champion(any_registry) == second.engine_name


def test_a_retired_version_comes_back(any_registry: AdapterRegistry, add: Add) -> None:
    first, second = add(0), add(1)
    any_registry.retire("legal", first.version)
    back = add(0)
    assert back.state is State.CHAMPION  # the agent had none
    any_registry.retire("legal", second.version)
    assert add(1).state is State.VALIDATED
    assert any_registry.promote("legal", actor="ana").digest == second.digest
    assert [entry.action for entry in any_registry.audit(20)].count("restore") == 2


def test_a_name_belongs_to_one_agent_and_one_base(any_registry: AdapterRegistry, add: Add) -> None:
    add(0, agent="counsel")
    assert add(1).agent == "counsel"
    with pytest.raises(LifecycleError, match="belongs to agent 'counsel'") as caught:
        add(2, agent="support")
    assert caught.value.code == "name_taken"
    with pytest.raises(LifecycleError, match="belongs to base 'tiny-base'"):
        add(2, base="other")
    assert len(any_registry.list_versions()) == 2


def test_several_names_may_hold_the_same_content(any_registry: AdapterRegistry, add: Add) -> None:
    one, two = add(0, "one"), add(0, "two")
    assert one.digest == two.digest
    assert one.path != two.path
    any_registry.retire("one")
    any_registry.collect_garbage(0)
    assert two.path.exists()
    assert not one.path.exists()


def test_pins(any_registry: AdapterRegistry, add: Add) -> None:
    first, second = add(0), add(1)
    assert any_registry.pin("legal").digest == first.digest
    assert any_registry.pin("legal", second.version).pinned
    assert not any_registry.unpin("legal", first.version).pinned
    any_registry.pin("legal", first.version)
    any_registry.unpin("legal")
    assert not any(version.pinned for version in any_registry.list_versions())


def test_states_move_along_the_table_only(any_registry: AdapterRegistry, add: Add) -> None:
    first, second = add(0), add(1)
    for state in (State.CANDIDATE, State.CANARY, State.CANARY, State.CANDIDATE, State.VALIDATED):
        assert any_registry.set_state("legal", second.version, state).state is state
    for state in (State.CANARY, State.CHAMPION, State.RETIRED, State.REGISTERED):
        with pytest.raises(LifecycleError) as caught:
            any_registry.set_state("legal", second.version, state)
        assert caught.value.code == "transition_not_allowed"
    with pytest.raises(LifecycleError):
        any_registry.set_state("legal", first.version, State.CANARY)


def test_history_tells_every_move(any_registry: AdapterRegistry, add: Add) -> None:
    first, second = add(0, actor="ana"), add(1, actor="ben", alias="champion")
    any_registry.rollback("legal", actor="cem")
    any_registry.retire("legal", first.version, actor="dan")
    moves = [(move.action, move.target, move.actor) for move in any_registry.history("legal")]
    assert moves == [
        ("promote", first.engine_name, "ana"),
        ("promote", second.engine_name, "ben"),
        ("rollback", first.engine_name, "cem"),
        ("retire", None, "dan"),
    ]
    assert any_registry.history("nobody") == ()


def test_every_change_counts_and_is_audited(any_registry: AdapterRegistry, add: Add) -> None:
    revisions = [any_registry.snapshot().revision]

    def counted() -> None:
        revisions.append(any_registry.snapshot().revision)

    version = add(0)
    counted()
    for change in (any_registry.pin, any_registry.unpin, any_registry.retire):
        change("legal", version.version)
        counted()
    assert revisions == [0, 1, 2, 3, 4]
    actions = [entry.action for entry in any_registry.audit(name="legal")]
    assert actions == ["retire", "unpin", "pin", "promote", "register"]
    assert any_registry.audit(2)[0].action == "retire"
    assert any_registry.audit(name="other") == ()


def test_engine_ids_never_collide_among_live_versions(
    any_registry: AdapterRegistry, add: Add, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = add(0)
    monkeypatch.setattr("adapters_registry.intake.engine_id_of", lambda name, digest: first.engine_id)
    with pytest.raises(LifecycleError) as caught:
        add(1, "other")
    assert caught.value.code == "engine_id_collision"
    assert first.engine_name in caught.value.message
    assert len(any_registry.list_versions()) == 1
    any_registry.retire("legal")
    assert add(1, "other").state is State.CHAMPION

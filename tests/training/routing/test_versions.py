"""Versions: promoted, returned to, kept within bounds, and never served once their files are not what they were."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa

from router import EVERYONE, Router
from router.learned import RouterModel, RouteRow, fit_outcomes
from tests.training.routing.conftest import PRESETS, MakeLearning
from training.routing import NothingToRollBack, VersionNotFound
from training.routing.tables import RouterMoveRow, RouterVersionRow
from training.routing.versions import KEPT


def model(seed: int = 0) -> RouterModel:
    """A small model; another seed gives another version."""
    rows = [RouteRow(f"word{(index + seed) % 7} text {index % 5}", index % 2, 1.0) for index in range(60)]
    return RouterModel.of(fit_outcomes(rows, estimator="tfidf"))


MODELS = [model(seed) for seed in range(3)]


def test_a_version_serves_from_its_promotion_until_the_rollback(any_learning: MakeLearning) -> None:
    learning = any_learning()
    versions = learning.versions
    first, second = (versions.add("ann", each, "fitted", {"gain": 1}) for each in MODELS[:2])
    assert versions.serving() == {}
    before = learning.read()
    versions.promote("ann", first, actor="test")
    versions.promote("ann", second, actor="test")
    after = learning.read()
    assert after.revision > before.revision
    assert after.router_of("ann").version == second
    assert after.router_of("bob") is None
    assert versions.rollback("ann", actor="test") == first
    assert learning.read().router_of("ann").version == first
    assert versions.rollback("ann", actor="test") is None
    assert learning.read().router_of("ann") is None
    with pytest.raises(NothingToRollBack):
        versions.rollback("ann", actor="test")


def test_promoting_again_changes_nothing(learning: MakeLearning) -> None:
    here = learning()
    version = here.versions.add("ann", MODELS[0], "fitted", {})
    here.versions.promote("ann", version, actor="test")
    revision = here.read().revision
    here.versions.promote("ann", version, actor="test")
    assert here.read().revision == revision
    assert here.versions.rollback("ann", actor="test") is None


def test_one_scope_cannot_promote_anothers_version(any_learning: MakeLearning) -> None:
    versions = any_learning().versions
    version = versions.add("ann", MODELS[0], "fitted", {})
    for scope, name in (("bob", version), (EVERYONE, version), ("ann", "0" * 12)):
        with pytest.raises(VersionNotFound):
            versions.promote(scope, name, actor="test")


def test_what_is_installed_for_everyone_serves_who_has_no_own(learning: MakeLearning) -> None:
    here = learning()
    for scope, each in ((EVERYONE, MODELS[0]), ("ann", MODELS[1])):
        here.versions.promote(scope, here.versions.add(scope, each, "installed", {}), actor="test")
    learnt = here.read()
    assert [learnt.router_of(owner).version for owner in ("ann", "bob")] == [MODELS[1].version, MODELS[0].version]
    for setting in ("shared", "off"):
        pooled = learning(learning=setting).read()
        assert {pooled.router_of(owner).version for owner in ("ann", "bob")} == {MODELS[0].version}


def test_the_same_content_is_one_folder_for_all(learning: MakeLearning) -> None:
    here = learning()
    names = {here.versions.add(scope, MODELS[0], "fitted", {}) for scope in ("ann", "bob", "ann")}
    assert names == {MODELS[0].version}
    assert [each.name for each in (here.home / "router").iterdir()] == [MODELS[0].version]


@pytest.mark.parametrize("harm", ["gone", "changed", "another"])
def test_a_version_whose_files_are_not_what_they_were_does_not_serve(
    learning: MakeLearning, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    here = learning()
    version, other = (here.versions.add("ann", each, "fitted", {}) for each in MODELS[:2])
    here.versions.promote("ann", version, actor="test")
    folder = here.versions.path_of(version)
    if harm == "changed":
        (folder / "router.json").write_text("{}")
    else:
        shutil.rmtree(folder)
    if harm == "another":
        shutil.copytree(here.versions.path_of(other), folder)
    assert here.read().router_of("ann") is None
    assert "does not serve" in caplog.text


def test_old_versions_make_room_but_what_serves_stays(learning: MakeLearning, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.routing.versions.KEPT", 2)
    assert KEPT > 2
    here = learning()
    for each in MODELS:
        here.versions.promote("ann", here.versions.add("ann", each, "fitted", {}), actor="test")
    kept = {each.version for each in here.versions.list("ann")}
    assert kept == {each.version for each in MODELS[1:]}
    assert {folder.name for folder in (here.home / "router").iterdir()} == kept
    assert here.versions.rollback("ann", actor="test") == MODELS[1].version
    assert here.versions.rollback("ann", actor="test") is None


def test_rolling_back_passes_over_a_version_that_has_made_room(learning: MakeLearning) -> None:
    here = learning()
    first, second, third = (here.versions.add("ann", each, "fitted", {}) for each in MODELS)
    here.versions.promote("ann", first, actor="test")
    with here.database.write() as session:
        session.add_all(
            RouterMoveRow(scope="ann", version=name, action="promote", actor="test", at=datetime.now(UTC), detail="")
            for name in (second, third)
        )
        session.execute(sa.delete(RouterVersionRow).filter_by(version=second))
    assert here.versions.rollback("ann", actor="test") == first
    assert here.versions.rollback("ann", actor="test") is None
    assert here.versions.serving() == {}


def test_versions_of_more_scopes_than_are_held_make_room(
    learning: MakeLearning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.routing.serving.MOST", 1)
    here = learning()
    for scope, each in ((EVERYONE, MODELS[0]), ("ann", MODELS[1]), ("bob", MODELS[2])):
        here.versions.promote(scope, here.versions.add(scope, each, "installed", {}), actor="test")
    learnt = here.read()
    assert [learnt.router_of(owner).version for owner in ("ann", "bob")] == [MODELS[0].version, MODELS[2].version]
    assert here.versions.rollback("bob", actor="test") is None
    assert here.read().router_of("ann").version == MODELS[1].version


def test_a_learned_router_decides_with_what_was_learned() -> None:
    from router import Task
    from tests.router.snapshots import THREE_TIERS, snapshot

    router = Router.from_model(MODELS[0], PRESETS)
    decision = router.decide(Task.from_messages("word1 text 2"), snapshot(THREE_TIERS))
    outlook = router.outlook(Task.from_messages("word1 text 2"))
    assert (decision.router, decision.difficulty) == (MODELS[0].version, 1 - outlook.weak)
    assert decision.candidates[-1].probability == pytest.approx(outlook.strong)
    assert decision.to_dict()["router"] == MODELS[0].version

"""Refits: a version takes over where it predicts later cases better, for its own scope alone."""

from __future__ import annotations

import random
from typing import Any

import pytest

from router import EVERYONE, RULES, Learnt
from router.learned import RouterModel, RouteRow, fit_outcomes
from tests.training.routing.conftest import BASES, PRESETS, Learning, MakeLearning
from training.casebank import Case
from training.routing.predicting import Asked, Predictor
from training.routing.refit import Scene
from training.routing.scopes import POOL
from training.routing.shadow import Rewarded, compare

TEXT = "plan table river number paper music garden letter window summer market simple travel office"
WORDS = TEXT.split()
Served = tuple[str, float, dict[str, Any]]


def tasks(count: int, *, told: bool, seed: int = 0, **more: Any) -> list[Served]:
    """Tasks of which a word tells that the small base fails, where `told`; else success is a coin."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        base, tricky = draw.choice(BASES), draw.random() < 0.5
        text = " ".join([*draw.choices(WORDS, k=8), "zebra" if tricky else "lemon"])
        right = draw.random() < (0.05 if tricky and base == "tiny" else 0.95) if told else draw.random() < 0.6
        made.append((text, float(right), {"base": base, "session": f"s{number // 2}", **more}))
    return made


def test_what_predicts_later_cases_better_takes_over(learning: MakeLearning) -> None:
    here = learning(refit_s=60, refit_min_cases=300)
    here.serve_many(tasks(600, told=True))
    learnt = here.learn()
    router = learnt.router_of("ann")
    assert router is not None
    assert router.version != RULES
    tricky, plain = (
        router.outlook(Asked([{"role": "user", "content": f"plan table river {word}"}], False, "", None, "tiny").task)
        for word in ("zebra", "lemon")
    )
    assert tricky.weak < 0.4
    assert min(tricky.strong, plain.weak) > 0.6
    assert learnt.router_of("bob") is None, "nobody else's changes"
    listed = here.versions.list()
    assert [(each.scope, each.serves, each.origin) for each in listed] == [("ann", True, "fitted")]
    assert listed[0].report["outcomes"]["gain_lower"] > 0


@pytest.mark.parametrize("text", ["the same question", "", "?"])
def test_a_tenant_whose_cases_cannot_be_learned_from_stops_nobody_else(learning: MakeLearning, text: str) -> None:
    here = learning(refit_s=60, refit_min_cases=300)
    odd = [(text, float(number % 2), {"owner": "aaa", "session": f"o{number}"}) for number in range(300)]
    here.serve_many(odd + tasks(600, told=True))
    assert set(here.learn().routers) == {"ann"}


def test_a_refit_ends_between_scopes(learning: MakeLearning) -> None:
    here = learning(refit_s=60, refit_min_cases=300)
    here.serve_many(tasks(600, told=True))
    keeper = here.keeper()
    keeper._ended.set()
    keeper.step()
    assert here.read().routers == {}


def test_what_predicts_no_better_does_not(learning: MakeLearning) -> None:
    here = learning(refit_s=60, refit_min_cases=300)
    here.serve_many(tasks(400, told=False))
    assert here.learn().routers == {}
    assert not here.versions.list()


def test_a_refit_waits_for_new_cases(learning: MakeLearning) -> None:
    here = learning(refit_s=60, refit_min_cases=500)
    here.serve_many(tasks(450, told=True))
    assert here.learn().routers == {}


def test_pooled_cases_make_a_version_for_all(learning: MakeLearning) -> None:
    here = learning(learning="shared", refit_s=60, refit_min_cases=300)
    halves = [tasks(200, told=True, seed=seed, owner=owner) for seed, owner in enumerate(("ann", "bob"))]
    here.serve_many(halves[0] + halves[1])
    learnt = here.learn()
    assert set(learnt.routers) == {EVERYONE}
    assert learnt.router_of("carol") is learnt.router_of("ann") is not None
    assert here.versions.list()[0].scope == POOL
    apart = Learning(here.database, here.home, here.routing.model_copy(update={"learning": "tenant"}))
    assert apart.read().routers == {}, "what was pooled is nobody's own"


def test_evidence_is_counted_by_the_version_that_serves(learning: MakeLearning) -> None:
    at_first = learning()
    at_first.serve_many(tasks(600, told=True))
    by_rules = _corrections(at_first)
    here = learning(refit_s=60, refit_min_cases=300)
    here.learn()
    fitted = _corrections(here)
    assert max(map(abs, fitted)) < max(map(abs, by_rules)), "better predictions leave less to correct"


def test_evidence_is_not_added_to_predictions_of_another_version(learning: MakeLearning) -> None:
    """Between a version's move and the counting again, its predictions stand as they are."""
    here = learning()
    here.serve_many(tasks(100, told=True) + tasks(100, told=False, owner=None))
    assert _cases(here.learn(), "ann") > _cases(here.read(), EVERYONE) > 0
    installed = RouterModel.of(fit_outcomes([RouteRow(f"{n} {n % 7} plan", n % 2, 1) for n in range(90)]))
    here.versions.promote("ann", here.versions.add("ann", installed, "installed", {}), actor="test")
    moved = here.read()
    assert (_cases(moved, "ann"), _cases(moved, EVERYONE) > 0) == (0, True)
    assert 0 < _cases(here.learn(), "ann") <= 100, "everyone's are still counted against the rules"
    here.versions.rollback("ann", actor="test")
    assert _cases(here.read(), "ann") == _cases(here.read(), EVERYONE), "everyone's were counted against the rules"


def test_who_has_a_version_and_no_cases_has_no_evidence_against_another(learning: MakeLearning) -> None:
    here = learning()
    here.serve_many(tasks(50, told=True, owner=None))
    installed = RouterModel.of(fit_outcomes([RouteRow(f"{n} {n % 7} plan", n % 2, 1) for n in range(90)]))
    here.versions.promote("ann", here.versions.add("ann", installed, "installed", {}), actor="test")
    assert _cases(here.learn(), "ann") == 0


def _cases(learnt: Learnt, owner: str) -> int:
    return learnt.evidence[owner].corrected(None, "tiny", 0.5, 0.1)[1]


def _corrections(here: Learning) -> list[float]:
    known = here.learn().evidence["ann"]
    return [known.corrected(None, base, 0.5, 0.1)[0] - 0.5 for base in BASES]


@pytest.mark.parametrize(("owner", "taught"), [("ann", "ann"), (None, EVERYONE)])
def test_agents_are_learned_from_cases_whose_agent_was_stated(
    learning: MakeLearning, owner: str | None, taught: str
) -> None:
    here = learning(refit_s=60, refit_min_cases=100)
    draw = random.Random(0)
    words = {"legal": "gavel docket bench", "security": "payload beacon implant"}
    for agent, own in words.items():
        here.bank.add(
            Case(
                messages=[{"role": "user", "content": " ".join([*draw.sample(WORDS, 5), *own.split(), str(number)])}],
                response={"role": "assistant", "content": "ok"},
                agent=agent,
                source="api",
                owner=owner,
            )
            for number in range(80)
        )
    router = here.learn().routers.get(taught)
    assert router is not None
    text = f"{' '.join(WORDS[:5])} gavel docket bench"
    assert router.recogniser.recognise(text)[0] == "legal"
    assert Scene(PRESETS, BASES).router(None).recogniser.recognise(text)[0] is None


# -- the estimator -----------------------------------------------------------------------------------------------------


class Constant:
    """A router that is equally sure of every task."""

    version = "constant"

    def __init__(self, probability: float) -> None:
        self.probability = probability

    def outlook(self, task: Any) -> Any:
        from router.success import Outlook

        return Outlook(1 - self.probability, self.probability, self.probability)


def predictor(probability: float) -> Predictor:
    return Predictor(Constant(probability), PRESETS, BASES)  # type: ignore[arg-type]


def rewarded(count: int, reward: float, sessions: int) -> list[Rewarded]:
    asked = Asked([{"role": "user", "content": "x"}], False, "", None, "tiny")
    return [Rewarded(f"s{number % sessions}", asked, reward) for number in range(count)]


def test_the_log_loss_is_that_of_the_candidate_that_answered() -> None:
    later = rewarded(50, 1.0, 50)
    found = compare(predictor(0.5), predictor(0.8), [], later, weight=20)
    assert (found.serving, found.candidate) == (pytest.approx(0.6931, abs=1e-4), pytest.approx(0.2231, abs=1e-4))
    assert found.is_better
    assert not compare(predictor(0.8), predictor(0.5), [], later, weight=20).is_better


def test_equal_predictions_are_no_better() -> None:
    found = compare(predictor(0.7), predictor(0.7), [], rewarded(50, 1.0, 50), weight=20)
    assert (found.gain, found.lower, found.is_better) == (0.0, 0.0, False)


def test_evidence_of_the_earlier_cases_is_in_both() -> None:
    """A version that is off by a constant is corrected in serving, so it is not worse for it."""
    earlier, later = rewarded(400, 1.0, 400), rewarded(50, 1.0, 50)
    corrected = compare(predictor(0.3), predictor(0.9), earlier, later, weight=20)
    raw = compare(predictor(0.3), predictor(0.9), [], later, weight=20)
    assert corrected.gain < raw.gain / 5


def test_one_long_session_proves_nothing() -> None:
    found = compare(predictor(0.5), predictor(0.8), [], rewarded(100, 1.0, 1), weight=20)
    assert found.lower > 0
    assert not found.is_better


def test_a_few_long_sessions_prove_little() -> None:
    mixed = [case._replace(reward=float(number % 5 < 3)) for number, case in enumerate(rewarded(100, 1.0, 5))]
    few = compare(predictor(0.5), predictor(0.6), [], mixed, weight=20)
    many = compare(
        predictor(0.5), predictor(0.6), [], [case._replace(session=f"s{n}") for n, case in enumerate(mixed)], weight=20
    )
    assert (few.sessions, many.sessions) == (5, 100)
    assert few.lower < many.lower

"""Evidence: nothing without cases, the cases' own mean with many, and smooth between."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router import EVERYONE, Evidence, Reason, Router, Tally, Task
from router.evidence import BANDS, NO_CASES, band_of
from tests.router.snapshots import LEGAL, PRESETS, THREE_TIERS, snapshot

ROUTER = Router.from_presets(PRESETS)
KEY = ("", "tiny")


def evidence(cases: float, reward: float, expected: float, bands=range(BANDS), key=KEY, **more) -> Evidence:
    """So many cases in each of the bands, with these means."""
    tally = Tally(cases, cases * reward, cases * expected)
    return Evidence({key: [tally if band in bands else NO_CASES for band in range(BANDS)]}, **more)


def test_without_cases_a_prediction_stays() -> None:
    assert Evidence().corrected(None, "tiny", 0.42, 0.3) == (0.42, 0)
    assert evidence(5, 0.9, 0.4).corrected("legal", "tiny", 0.42, 0.3) == (0.42, 0), "of another agent"


def test_many_cases_bring_a_prediction_to_their_mean() -> None:
    corrected, cases = evidence(10_000, 0.9, 0.4).corrected(None, "tiny", 0.4, 0.3)
    assert corrected == pytest.approx(0.9, abs=0.001)
    assert cases == 50_000


def test_evidence_moves_a_prediction_step_by_step() -> None:
    path = [evidence(cases, 1.0, 0.4).corrected(None, "tiny", 0.4, 0.5)[0] for cases in (0, 1, 2, 5, 10, 50, 500)]
    assert path == sorted(path)
    assert path[0] == 0.4
    assert all(after - before < 0.35 for before, after in pairwise(path))


def test_a_case_weighs_as_the_setting_says() -> None:
    light, heavy = (evidence(4, 1.0, 0.4, weight=weight).corrected(None, "tiny", 0.4, 0.5)[0] for weight in (2, 200))
    assert light > heavy > 0.4


def test_bands_that_have_cases_speak_for_those_that_have_few() -> None:
    easy = evidence(200, 0.9, 0.5, bands={0, 1})
    assert easy.corrected(None, "tiny", 0.5, 0.1)[0] == pytest.approx(0.9, abs=0.03)
    assert 0.6 < easy.corrected(None, "tiny", 0.5, 0.9)[0] < 0.9


@given(
    st.lists(st.tuples(st.integers(0, 500), st.floats(0, 1), st.floats(0, 1)), min_size=BANDS, max_size=BANDS),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_a_probability_stays_one_and_moves_without_jumps(bands, probability, difficulty) -> None:
    known = Evidence({KEY: [Tally(n, n * reward, n * expected) for n, reward, expected in bands]})
    corrected, _ = known.corrected(None, "tiny", probability, difficulty)
    assert 0 <= corrected <= 1
    near, _ = known.corrected(None, "tiny", probability, min(difficulty + 1e-4, 1.0))
    assert abs(near - corrected) < 2e-3


def test_predictions_are_calibrated_on_what_was_counted() -> None:
    """A prior that is far off, corrected by 3,000 cases: predicted and realised agree on 3,000 others."""
    draw = random.Random(0)

    def case() -> tuple[float, float, float]:
        difficulty = draw.random()
        return difficulty, 0.95 - 0.65 * difficulty, float(draw.random() < 0.6 - 0.5 * difficulty**2)

    tallies = [NO_CASES] * BANDS
    for difficulty, predicted, reward in (case() for _ in range(3000)):
        band = band_of(difficulty)
        tallies[band] = Tally(*(a + b for a, b in zip(tallies[band], (1, reward, predicted), strict=True)))
    known = Evidence({KEY: tallies})
    later = [(known.corrected(None, "tiny", p, d)[0], reward) for d, p, reward in (case() for _ in range(3000))]
    bins = [[each for each in later if low <= each[0] < low + 0.1] for low in (x / 10 for x in range(10))]
    error = sum(abs(sum(p - r for p, r in each)) for each in bins) / len(later)
    assert error <= 0.05


def test_an_adapter_that_does_badly_loses_its_agents_tasks() -> None:
    bad = evidence(100, 0.1, 0.9, key=("legal-agent", LEGAL.engine_name))
    now = snapshot(THREE_TIERS, evidence={"": bad})
    decision = ROUTER.decide(Task.from_messages("Review the clause", model="auto:legal"), now)
    assert (decision.adapter, decision.reason) == (None, Reason.TIER)
    assert decision.candidates[0].cases == 500


def test_a_cheap_base_that_does_well_keeps_hard_tasks() -> None:
    hard = Task.from_messages("Prove the equation step by step, x^2 = 12 and compare why. " * 12)
    assert ROUTER.decide(hard, snapshot(THREE_TIERS)).tier == "big"
    assert ROUTER.decide(hard, snapshot(THREE_TIERS, evidence={"": evidence(200, 0.97, 0.4)})).tier == "small"


def test_what_one_owner_knows_another_does_not() -> None:
    known = evidence(200, 0.97, 0.4)
    now = snapshot(THREE_TIERS, evidence={"alice": known})
    hard = "Prove the equation step by step, x^2 = 12 and compare why. " * 12
    tiers = [ROUTER.decide(Task.from_messages(hard, owner=owner), now).tier for owner in ("alice", "bob", "")]
    assert tiers == ["small", "big", "big"]
    shared = snapshot(THREE_TIERS, evidence={EVERYONE: known})
    assert {ROUTER.decide(Task.from_messages(hard, owner=owner), shared).tier for owner in ("alice", "bob")} == {
        "small"
    }

"""What is compared is what serves: shares held online, and costs of a policy that knows one price a tier."""

from __future__ import annotations

import json

import numpy as np
import pytest

from router.evaluation.comparison import SHARES, Comparison, Predictions, choose, measure, replayed
from router.evaluation.contenders import contenders
from router.evaluation.curve import curves
from router.evaluation.report import summary
from router.learned import RouteRow
from tests.router.learned.tasks import route_rows


def compared(rows: list[RouteRow], gain: np.ndarray) -> Comparison:  # type: ignore[type-arg]
    said = {"tfidf": Predictions(gain, 0.5 - gain / 2, 0.5 + gain / 2)}
    return Comparison(rows, said, measure(rows, said, seed=0), "tfidf", {})


@pytest.mark.parametrize("centre", [-0.2, 0.0, 0.2])
def test_shares_are_held_online_whatever_the_gains(centre: float) -> None:
    gain = np.random.default_rng(0).normal(centre, 0.1, 2000)
    assert replayed(gain, seed=0) / 2000 == pytest.approx(SHARES, abs=0.03)


def test_the_policy_goes_by_the_gain_and_pays_by_the_length() -> None:
    rows = [RouteRow("x" * 4000, 0, 1), RouteRow("x" * 40, 0, 1)]
    found = curves(compared(rows, np.array([0.3, 0.2])), seed=0)["utility"]
    first, second = np.diff(found.cost)
    assert first == pytest.approx(100 * second)


def test_equal_tiers_print_valid_json() -> None:
    rows = [RouteRow(f"task {n}", 1, 1) for n in range(8)]
    line = json.loads(json.dumps(summary(compared(rows, np.zeros(8))), allow_nan=False))["estimators"]["tfidf"]
    assert (line["apgr"], line["apgr_ci"], line["cpt50"]) == (None, [None, None], None)


def test_two_groups_are_enough_to_choose_on() -> None:
    everybody = {name: fit for name, fit in contenders().items() if name == "tfidf"}
    assert choose(route_rows(160, groups=2), everybody, seed=0) == "tfidf"

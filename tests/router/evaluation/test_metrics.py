from __future__ import annotations

import math

import numpy as np
import pytest

from router.evaluation import metrics, read_routes
from tests.router.evaluation.data import ROUTES

GAIN = np.array([0.0, 1.0, -1.0, 1.0, 0.0])


def test_pgr_is_the_part_of_the_gain_had_so_far() -> None:
    order = np.array([1, 0, 3, 2, 4])
    assert metrics.pgr(GAIN, order).tolist() == [0, 1, 1, 2, 1, 1]


def test_apgr_is_the_area_under_the_whole_curve() -> None:
    order = np.array([1, 0, 3, 2, 4])
    assert metrics.apgr(GAIN, order) == pytest.approx((0.5 + 1 + 1.5 + 1.5 + 1) / 5)


def test_apgr_of_the_best_and_of_the_worst_order_lie_on_both_sides_of_chance() -> None:
    best, worst = metrics.ranking(GAIN, 0), metrics.ranking(-GAIN, 0)
    assert metrics.apgr(GAIN, best) > 1
    assert metrics.apgr(GAIN, worst) < 0
    assert metrics.apgr(GAIN, best) + metrics.apgr(GAIN, best[::-1]) == pytest.approx(1)


def test_cpt_is_the_least_share_that_suffices() -> None:
    gain = np.array([0.0, 1, 1, 0, 1, 1, 0, 0, 0, 0])
    assert metrics.cpt(gain, np.arange(10), 0.5) == 0.3
    assert metrics.cpt(gain, np.arange(10), 0.8) == 0.6


def test_ties_are_broken_at_random_and_by_seed() -> None:
    score = np.zeros(1000)
    one, same, other = (metrics.ranking(score, seed) for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()
    assert (one != np.arange(1000)).any()


def test_equal_models_have_no_apgr() -> None:
    assert math.isnan(metrics.apgr(np.zeros(4), np.arange(4)))


def test_equal_models_have_no_interval_and_no_share_that_suffices() -> None:
    assert math.isnan(metrics.cpt(np.zeros(4), np.arange(4), 0.5))
    assert np.isnan(metrics.resampled_apgr(np.zeros(4), [np.arange(4)], seed=0, rounds=3)).all()


def test_groups_are_drawn_whole() -> None:
    rng = np.random.default_rng(0)
    unit = np.repeat(np.arange(10), 60)
    gain = rng.choice([0.0, 1], p=[0.7, 0.3], size=10)[unit]
    order = metrics.ranking(rng.normal(size=10)[unit], 0)
    alone, together = (metrics.resampled_apgr(gain, [order], seed=0, unit=each, rounds=200)[0] for each in (None, unit))
    assert np.nanstd(together) > 3 * alone.std()


def test_resampling_centres_on_the_estimate_and_pairs_the_rankings() -> None:
    rng = np.random.default_rng(0)
    gain = rng.choice([-1.0, 0, 1], p=[0.05, 0.75, 0.2], size=1500)
    good, worse = (metrics.ranking(gain + noise * rng.normal(size=1500), 0) for noise in (2, 2.4))
    resampled = metrics.resampled_apgr(gain, [good, worse], seed=0, rounds=400)
    assert resampled.shape == (2, 400)
    low, high = metrics.interval(resampled[0])
    assert low < metrics.apgr(gain, good) < high
    assert abs(resampled[0].mean() - metrics.apgr(gain, good)) < 0.01
    assert np.corrcoef(resampled)[0, 1] > 0.1


def test_a_resample_that_draws_each_row_once_is_the_estimate() -> None:
    order = np.array([3, 1, 0, 2, 4])
    once = np.ones((1, 5), dtype=int)
    assert metrics._weighted_apgr(GAIN[order], once)[0] == pytest.approx(metrics.apgr(GAIN, order))


def test_copies_of_a_row_are_neighbours_in_the_ranking() -> None:
    twice = np.array([[2, 1, 0, 1, 1]])
    copied = np.array([0.0, 0.0, 1.0, 1.0, 0.0])
    assert metrics._weighted_apgr(GAIN, twice)[0] == pytest.approx(metrics.apgr(copied, np.arange(5)))


def test_ece_is_the_distance_of_belief_and_truth_within_bins() -> None:
    believed = np.array([0.9, 0.9, 0.1, 0.1])
    assert metrics.ece(believed, np.array([1.0, 1, 0, 0]), bins=10) == pytest.approx(0.1)
    assert metrics.ece(believed, np.array([1.0, 0, 0, 0]), bins=10) == pytest.approx((0.4 + 0.1) / 2)
    assert metrics.ece(np.ones(3), np.ones(3)) == 0


@pytest.mark.skipif(not ROUTES.is_file(), reason="LORADOCK_TEST_DATA names no folder with the public routing data")
def test_the_known_figures_of_the_public_data() -> None:
    rows = read_routes(ROUTES)
    gain = np.array([row.strong - row.weak for row in rows])
    length = metrics.ranking(np.array([float(len(row.prompt)) for row in rows]), 0)
    assert metrics.apgr(gain, length) == pytest.approx(0.586, abs=0.001)
    assert metrics.cpt(gain, length, 0.5) == pytest.approx(0.359, abs=0.002)
    assert metrics.cpt(gain, length, 0.8) == pytest.approx(0.691, abs=0.002)
    assert metrics.apgr(gain, metrics.ranking(gain, 0)) == pytest.approx(1.285, abs=0.001)
    assert metrics.interval(metrics.resampled_apgr(gain, [length], seed=0)[0]) == pytest.approx(
        (0.569, 0.602), abs=0.005
    )

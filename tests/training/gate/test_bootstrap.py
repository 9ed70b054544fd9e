from __future__ import annotations

import numpy as np
import pytest

from tests.training.gate.simulate import answers, difficulties
from training.gate.bootstrap import ERROR, paired_bootstrap


def test_a_clear_gain_has_its_bound_above_zero_and_no_gain_below() -> None:
    assert paired_bootstrap([1.0] * 12 + [0.0] * 40).lower > 0
    assert paired_bootstrap([1.0] * 12 + [-1.0] * 11 + [0.0] * 40).lower < 0
    assert paired_bootstrap([0.0] * 60).lower == 0


def test_the_same_rows_and_seed_give_the_same() -> None:
    rows = np.random.default_rng(3).normal(0.02, 0.3, 80).tolist()
    assert paired_bootstrap(rows, seed=5) == paired_bootstrap(rows, seed=5)
    assert paired_bootstrap(rows, seed=5) != paired_bootstrap(rows, seed=6)


def test_rows_of_many_values_are_resampled_like_those_of_few() -> None:
    few = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], 200, p=[0.1, 0.7, 0.2])
    many = few + np.linspace(0, 1e-9, few.size)  # as many values as rows: drawn one by one
    assert paired_bootstrap(many).lower == pytest.approx(paired_bootstrap(few).lower, abs=0.006)
    assert paired_bootstrap(many).upper == pytest.approx(paired_bootstrap(few).upper, abs=0.006)


@pytest.mark.parametrize("rows", [20, 120])
def test_candidates_without_a_gain_pass_as_rarely_as_promised(rows: int) -> None:
    draw, trials = np.random.default_rng(7), 400
    passed = 0
    for _ in range(trials):
        champion, candidate = answers(draw, difficulties(draw, rows), agree=0.3)
        passed += paired_bootstrap(candidate - champion, resamples=2000).lower > 0
    assert passed / trials <= ERROR + 2 * (ERROR / trials) ** 0.5


def test_nothing_to_resample_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no rows"):
        paired_bootstrap([])

"""DAAO's head: what torch fits, numpy says again, and hard tasks come out harder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from router.evaluation.baselines import seen
from router.learned import RouterModel
from router.learned.daao import VariationalOutcomes, forward
from tests.router.learned.tasks import route_rows
from training.routing.daao import fit_daao


@pytest.fixture(scope="module")
def head() -> VariationalOutcomes:
    return fit_daao(route_rows(600), seed=0)


def test_hard_tasks_are_harder_than_easy_ones(head: VariationalOutcomes) -> None:
    rows = route_rows(200, seed=1)
    difficulty = np.array([head.difficulty(row.prompt) for row in rows])
    wrong = np.array([1 - row.weak for row in rows])
    assert ((difficulty >= 0) & (difficulty <= 1)).all()
    assert difficulty[wrong == 1].mean() > difficulty[wrong == 0].mean() + 0.1
    weak = np.array([head.outcomes(*seen(row.prompt)).weak for row in rows])
    assert (np.argsort(weak) == np.argsort(-difficulty)).mean() > 0.99


def test_it_is_saved_and_loaded_as_part_of_a_model(head: VariationalOutcomes, tmp_path: Path) -> None:
    made = RouterModel.of(head)
    made.save(tmp_path)
    loaded = RouterModel.load(tmp_path)
    assert loaded.version == made.version
    assert isinstance(loaded.outcomes, VariationalOutcomes)
    task = seen("prove the lemma about the garden")
    assert loaded.outcomes.outcomes(*task) == pytest.approx(head.outcomes(*task), abs=1e-4)


def test_the_same_seed_fits_the_same_head() -> None:
    rows = route_rows(120)
    one, same = (RouterModel.of(fit_daao(rows, seed=3)).version for _ in range(2))
    assert one == same


def test_forward_is_the_network() -> None:
    layers = {
        "z_weight": np.array([[1.0, 0.0], [0.0, -1.0]]),
        "z_bias": np.array([0.0, 1.0]),
        "hidden_weight": np.array([[1.0], [1.0]]),
        "hidden_bias": np.array([-1.0]),
        "difficulty_weight": np.array([[2.0]]),
        "difficulty_bias": np.array([-1.0]),
    }
    # z = (3, -1), hidden = max(0, 3 - 1 - 1) = 1, score = 2 - 1
    assert forward(layers, np.array([3.0, 2.0])) == pytest.approx(1 / (1 + np.exp(-1)))

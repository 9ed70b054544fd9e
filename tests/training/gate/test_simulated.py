"""Retrains without a real gain, from the gate to the end of the canary: how many are promoted."""

from __future__ import annotations

import numpy as np

from tests.training.gate.simulate import answers, canary, difficulties, passes

RETRAINS = 200
ALLOWED = 0.05
REQUESTS, SHARE, MEAN = 200, 0.1, 0.75


def promoted(seed: int, *, rows: int, retrains: int = RETRAINS, gain: float = 0.0) -> int:
    """Champions made by chance stay champions: each retrain is judged against what serves then."""
    draw = np.random.default_rng(seed)
    chances = difficulties(draw, rows)  # the holdout is frozen
    champion, _ = answers(draw, chances, agree=0.0)
    count = 0
    for _ in range(retrains):
        same, fresh = answers(draw, np.clip(chances + gain, 0, 1), agree=0.0)
        candidate = np.where(draw.random(rows) < 0.5, champion, fresh) if not gain else same
        if passes(draw, champion, candidate) and canary(draw, REQUESTS, SHARE, MEAN, gain / 2) == "promote":
            count += 1
            champion = candidate if not gain else champion
    return count


def test_of_200_retrains_without_a_gain_at_most_5_percent_are_promoted() -> None:
    for seed, rows in enumerate((20, 60, 400)):
        assert promoted(seed, rows=rows) <= ALLOWED * RETRAINS, f"{rows} rows"


def test_retrains_with_a_real_gain_are_promoted() -> None:
    assert promoted(5, rows=200, retrains=40, gain=0.2) >= 0.8 * 40

from __future__ import annotations

import numpy as np
import pytest

from router.evaluation import splits
from router.evaluation.folds import folds_of
from router.learned import RouteRow


def test_every_row_is_held_out_once_and_repeats_share_a_fold() -> None:
    rows = [RouteRow(f"prompt {place % 40}", 0, 1) for place in range(100)]
    parts = list(splits(rows, 5, seed=3))
    assert sorted(np.concatenate([part.test for part in parts])) == list(range(100))
    for part in parts:
        assert not {rows[place].prompt for place in part.train} & {rows[place].prompt for place in part.test}


def test_groups_are_held_out_whole_and_their_prompts_are_learned_nowhere() -> None:
    rows = [RouteRow(f"prompt {place}", 0, 1, f"group {place % 7}") for place in range(70)]
    rows.append(RouteRow("prompt 0", 0, 1, "group 5"))
    fold = folds_of(rows, 3, seed=0)
    assert all(len({fold[place] for place in range(70) if rows[place].group == f"group {g}"}) == 1 for g in range(7))
    for part in splits(rows, 3, seed=0):
        assert not {rows[place].prompt for place in part.train} & {rows[place].prompt for place in part.test}


def test_train_rows_are_drawn_by_seed() -> None:
    rows = [RouteRow(f"prompt {place}", 0, 1) for place in range(200)]
    (one, *_), (same, *_), (other, *_) = (list(splits(rows, 4, seed=seed, train_rows=50)) for seed in (0, 0, 1))
    assert len(one.train) == 50
    assert (one.train == same.train).all()
    assert len(one.test) == 50
    assert one.train.tolist() != other.train.tolist()


def test_too_few_groups_are_refused() -> None:
    rows = [RouteRow(f"prompt {place}", 0, 1, "one group") for place in range(20)]
    with pytest.raises(ValueError, match="1 different groups cannot fill 5 folds"):
        list(splits(rows, 5, seed=0))

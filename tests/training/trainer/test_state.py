from __future__ import annotations

from training.trainer.memory import Thrift
from training.trainer.state import RunState
from training.trainer.step import Score
from training.trainer.watch import Pace


def looks(*scores: tuple[float, float]) -> list[tuple[bool, int]]:
    """Whether each look of (exact, loss) was the best so far, and the looks without gain after it."""
    state = RunState(Thrift(64), Pace(steps=100, warmup=0.05))
    return [(state.look(Score(loss=loss, exact=exact)), state.misses) for exact, loss in scores]


def test_a_look_gains_by_more_right_cases_or_by_a_lower_loss() -> None:
    assert looks((0.5, 2.0), (0.5, 1.0), (0.6, 1.5), (0.6, 1.6), (0.5, 0.1)) == [
        (True, 0),
        (True, 0),
        (True, 0),
        (False, 1),
        (False, 2),
    ]


def test_looks_that_find_all_right_are_counted_while_they_follow_one_another() -> None:
    state = RunState(Thrift(64), Pace(steps=100, warmup=0.05))
    counted = []
    for exact in (1.0, 0.9, 1.0, 1.0):
        state.look(Score(loss=0.1, exact=exact))
        counted.append(state.right)
    assert counted == [1, 0, 1, 2]


def test_once_all_are_right_the_best_is_kept_and_nothing_gains() -> None:
    assert looks((0.9, 1.0), (1.0, 0.5), (1.0, 0.4), (1.0, 0.3)) == [(True, 0), (True, 0), (True, 1), (True, 2)]

from __future__ import annotations

import numpy as np
import pytest

from tests.training.gate.simulate import rewarded
from training.gate.sequential import ERROR, Arm, Rewarded, compare, compare_arms


def of(name: str, *rewards: float) -> list[Rewarded]:
    return [Rewarded(f"{name}{number}", reward) for number, reward in enumerate(rewards)]


def test_looking_all_the_time_costs_no_more_errors_than_promised() -> None:
    draw, wrong, trials = np.random.default_rng(2), 0, 100
    for _ in range(trials):
        one, other = rewarded(draw, "a", 200, 0.75), rewarded(draw, "b", 1800, 0.75)
        looks = (compare(one[:count], other[: 9 * count], 200) for count in range(30, 201, 17))
        wrong += any(look.is_gain or look.is_harm for look in looks)
    assert wrong / trials <= ERROR


@pytest.mark.parametrize("gain", [-0.25, 0.25])
def test_a_large_difference_is_seen_before_the_end(gain: float) -> None:
    draw = np.random.default_rng(1)
    one, other = rewarded(draw, "a", 200, 0.6 + gain), rewarded(draw, "b", 1800, 0.6)
    seen = [compare(one[:count], other[: 9 * count], 200) for count in range(20, 201, 20)]
    assert any((look.is_gain if gain > 0 else look.is_harm) for look in seen[:-1])


def test_nothing_is_concluded_from_few_sessions() -> None:
    look = compare(of("a", *[0.0] * 19), of("b", *[1.0] * 500), 200)
    assert not look.is_harm
    assert "too few to tell" in look.text
    one_session = [Rewarded("same", 0.0)] * 300
    assert not compare(one_session, of("b", *[1.0] * 500), 200).is_harm


def test_equal_rewards_are_no_certainty() -> None:
    look = compare(of("a", *[1.0] * 20), of("b", *([1.0] * 18 + [0.0, 1.0])), 200)
    assert not look.is_gain
    assert look.low is not None
    assert look.low < 0 < look.value


def test_requests_of_one_session_tell_less_than_those_of_many() -> None:
    draw = np.random.default_rng(0)
    values = (draw.random(300) < 0.5).astype(float)
    alone = Arm.of(of("a", *values))
    alike = Arm.of([Rewarded(f"s{number // 3}", values[number // 3]) for number in range(300)])
    assert alike.requests == alone.requests
    assert alike.variance > 2 * alone.variance


def test_no_rewards_are_no_difference() -> None:
    look = compare_arms(Arm.of([]), Arm.of([]), 200)
    assert (look.value, look.low, look.high) == (0.0, None, None)

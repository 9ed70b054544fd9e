from __future__ import annotations

import math

import pytest

from training.trainer.memory import Thrift
from training.trainer.watch import PATIENCE, Pace, Unhealthy, Watch


@pytest.mark.parametrize(("loss", "gradient"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_no_number_is_seen_at_once(loss: float, gradient: float) -> None:
    with pytest.raises(Unhealthy):
        Watch().see(loss, gradient)


def test_a_loss_that_stays_far_above_the_best_is_seen() -> None:
    watch = Watch()
    for _ in range(20):
        watch.see(1.0, 1.0)
    seen = 0
    with pytest.raises(Unhealthy, match=r"has been above 3\.50 for"):
        for _ in range(50):
            watch.see(9.0, 1.0)
            seen += 1
            assert watch.healthy or watch.above
    assert seen >= PATIENCE - 1


def test_a_peak_and_noise_near_zero_are_borne() -> None:
    watch = Watch()
    for loss in [2.0, 1.0, 0.5, 30.0, *[0.5] * 30, *[0.001, 0.3] * 100]:
        watch.see(loss, 1.0)
    assert watch.healthy


def test_the_pace_rises_falls_and_calms_down() -> None:
    pace = Pace(steps=100, warmup=0.1)
    rates = [pace.at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[-1] < 0.05
    calm = pace.calmer(40)
    assert calm.at(40) == pytest.approx(pace.at(40) / 10 / 10)
    assert calm.at(60) == pytest.approx(pace.at(60) / 10)
    assert calm.clip < pace.clip


def test_memory_is_saved_in_the_documented_order() -> None:
    thrift = Thrift(4096)
    halved = thrift.halved(3000)
    assert halved.micro_tokens == 1500
    ways = []
    while (following := halved.next(on_gpu=True, may_quantise=True)) is not None:
        ways.append({name for name in ("checkpointing", "four_bit", "offload") if getattr(following, name)})
        halved = following
    assert ways == [{"checkpointing"}, {"checkpointing", "four_bit"}, {"checkpointing", "four_bit", "offload"}]


def test_a_processor_has_no_4_bit_weights_and_nowhere_to_put_activations() -> None:
    following = Thrift(16).next(on_gpu=False, may_quantise=True)
    assert following == Thrift(16, checkpointing=True)
    assert following.next(on_gpu=False, may_quantise=True) is None

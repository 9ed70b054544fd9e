from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from training.trainer.batches import IGNORED, Schedule, idle, loss_weight, packed, padded, share
from training.trainer.rows import Row
from training.trainer.step import scores, summed_loss

LENGTHS = [5 + (7 * number) % 23 for number in range(40)]


def row(length: int, prompt: int = 2) -> Row:
    return Row(np.arange(1, length + 1, dtype=np.int32), prompt)


@pytest.fixture
def model(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base, attn_implementation="sdpa").eval()


def test_every_epoch_holds_each_row_once_in_another_order() -> None:
    schedule = Schedule(LENGTHS, 64, seed=1, epochs=2)
    half = schedule.steps // 2
    first, second = ([schedule.rows_of(step) for step in steps] for steps in (range(half), range(half, 2 * half)))
    assert sorted(chain(*first)) == sorted(chain(*second)) == list(range(40))
    assert first != second
    assert all(max(LENGTHS[i] for i in rows) * len(rows) <= 64 for rows in first)


def test_the_order_depends_on_the_seed_alone() -> None:
    one, same, other = (Schedule(LENGTHS, 64, seed=seed, epochs=3) for seed in (1, 1, 2))
    backwards = [same.rows_of(step) for step in reversed(range(same.steps))]
    assert [one.rows_of(step) for step in range(one.steps)] == backwards[::-1]
    assert [one.rows_of(step) for step in range(5)] != [other.rows_of(step) for step in range(5)]


def test_parts_of_epochs_and_limits_of_steps_end_a_run() -> None:
    whole = Schedule(LENGTHS, 64, seed=1, epochs=1).steps
    assert Schedule(LENGTHS, 64, seed=1, epochs=1.5).steps == pytest.approx(1.5 * whole, abs=1)
    limited = Schedule(LENGTHS, 64, seed=1, epochs=9, max_steps=7)
    assert limited.steps == 7
    assert limited.epoch_at(7) == pytest.approx(7 / whole, rel=0.2)


def test_every_process_has_as_many_micro_batches() -> None:
    indices = sorted(range(9), key=LENGTHS.__getitem__)
    for processes, tokens in ((1, 1000), (2, 30), (4, 20), (12, 1000)):
        shares = [share(indices, LENGTHS, tokens, process, processes) for process in range(processes)]
        assert len({len(each) for each in shares}) == 1
        assert sorted(chain(*chain(*shares))) == sorted(indices)


def test_labels_are_the_next_tokens_of_the_completion() -> None:
    batch = padded([row(4), row(6, prompt=4)], pad=0)
    assert batch.ids.tolist() == [[1, 2, 3, 4, 0, 0], [1, 2, 3, 4, 5, 6]]
    assert batch.labels.tolist() == [[IGNORED, 3, 4, *[IGNORED] * 3], [*[IGNORED] * 3, 5, 6, IGNORED]]
    assert batch.keep.tolist() == [1, 2, 3, 4]
    assert [loss_weight(row(4)), loss_weight(row(6, prompt=4)), loss_weight(row(3, prompt=0))] == [2, 2, 2]


def test_neither_padding_nor_packing_nor_neighbours_change_the_loss(model: Any) -> None:
    rows = [row(9, 3), row(17, 12), row(5, 2)]
    alone = sum(float(summed_loss(model, padded([each], pad=0)).detach()) for each in rows)
    assert float(summed_loss(model, padded(rows, pad=0)).detach()) == pytest.approx(alone, rel=1e-5)
    assert float(summed_loss(model, packed(rows)).detach()) == pytest.approx(alone, rel=1e-5)
    loss, right = scores(model, padded(rows, pad=0))
    assert float(loss) == pytest.approx(alone, rel=1e-5)
    assert int(right) == 0


def test_a_rows_loss_counts_as_often_as_its_weight_says(model: Any) -> None:
    light, heavy = replace(row(9, 3), weight=0.25), row(17, 12)
    alone = [float(summed_loss(model, padded([each], pad=0)).detach()) for each in (row(9, 3), heavy)]
    for batch in (padded([light, heavy], pad=0), packed([light, heavy])):
        assert float(summed_loss(model, batch).detach()) == pytest.approx(0.25 * alone[0] + alone[1], rel=1e-5)
    assert loss_weight(light) == 1.5
    assert padded([heavy], pad=0).weights is None
    assert packed([heavy]).weights is None


def test_an_idle_batch_adds_nothing(model: Any) -> None:
    assert float(summed_loss(model, idle(pad=0)).detach()) == 0.0

from __future__ import annotations

import math
from pathlib import Path

import pytest

from configs import embedded
from configs.training import TrainingPreset
from training.trainer import BaseFacts, DataFacts, TrainingConfig, adaptive_rank, resolve

TINY = BaseFacts(hidden_size=256, linear_sizes=19_456, context=2048)
LARGE = BaseFacts(hidden_size=3584, linear_sizes=2_523_136, context=32_768)
LABELS = DataFacts(rows=500, prompt_tokens=20_000, completion_tokens=2_000, task_types=frozenset({"classification"}))
PROSE = DataFacts(rows=500, prompt_tokens=20_000, completion_tokens=100_000)


def config(**changes: object) -> TrainingConfig:
    return TrainingConfig.checked({"base": "b", "dataset": Path("d"), "output": Path("o")} | changes)


def test_the_embedded_base_tells_its_sizes_without_being_loaded() -> None:
    assert BaseFacts.from_folder(embedded.BASE) == TINY


@pytest.mark.parametrize(
    ("base", "data", "limit", "rank"),
    [
        (TINY, LABELS, 64, 16),
        (LARGE, LABELS, 64, 16),
        (LARGE, PROSE, 64, 32),
        (LARGE, PROSE, 16, 16),
        (LARGE, LABELS, 8, 8),
        # ten million tokens are more than rank 32 of a tiny base can hold, and not of a large one
        (TINY, DataFacts(100_000, 0, 10_000_000), 512, 320),
        (TINY, DataFacts(100_000, 0, 10_000_000), 64, 64),
        (LARGE, DataFacts(100_000, 0, 10_000_000), 512, 32),
    ],
)
def test_the_rank_follows_task_and_completions_within_the_engine(
    base: BaseFacts, data: DataFacts, limit: int, rank: int
) -> None:
    assert adaptive_rank(base, data, limit) == rank


def test_everything_open_is_chosen() -> None:
    chosen = resolve(config(), None, TINY, LABELS)
    open_still = {name for name, value in chosen if value is None}
    assert open_still == {"base_name", "threads", "continue_from", "max_steps", "checkpoint_steps"}
    assert chosen.alpha == 2 * (chosen.rank or 0)
    assert chosen.max_length == TINY.context


def test_what_is_given_stays() -> None:
    given = config(rank=8, alpha=8, learning_rate=1e-3, learning_rate_multiplier=0.5, epochs=1.5, micro_tokens=64)
    chosen = resolve(given, None, TINY, LABELS)
    assert (chosen.rank, chosen.alpha, chosen.epochs, chosen.micro_tokens) == (8, 8, 1.5, 64)
    assert chosen.learning_rate == 5e-4
    assert chosen.learning_rate_multiplier == 1.0


def test_a_preset_decides_before_the_rules_and_after_the_configuration() -> None:
    preset = TrainingPreset(rank=32, epochs=4, dropout=0.2)
    chosen = resolve(config(epochs=2), preset, TINY, LABELS)
    assert (chosen.rank, chosen.epochs, chosen.dropout) == (32, 2, 0.2)


def test_larger_bases_learn_slower_and_need_fewer_passes() -> None:
    tiny, large = (resolve(config(batch_tokens=4096), None, base, LABELS) for base in (TINY, LARGE))
    assert tiny.learning_rate == pytest.approx(2e-3, rel=0.02)
    assert large.learning_rate == pytest.approx(2.2e-4, rel=0.05)
    assert (tiny.epochs or 0) > (large.epochs or 0) >= 2
    full = resolve(config(batch_tokens=4096, method="full"), None, LARGE, LABELS)
    assert math.isclose(full.learning_rate or 0, (large.learning_rate or 0) / 10)


def test_few_cases_are_learned_in_small_slow_steps() -> None:
    few, many = (resolve(config(), None, TINY, DataFacts(rows, 30 * rows, 10 * rows)) for rows in (100, 40_000))
    assert (few.batch_tokens, many.batch_tokens) == (320, 4096)
    assert few.learning_rate == pytest.approx((many.learning_rate or 0) * math.sqrt(320 / 4096))


def test_facts_can_be_estimated_without_a_tokenizer() -> None:
    row = {"messages": [{"role": "user", "content": "x" * 400}], "completion": "y" * 40, "task_type": "chat"}
    facts = DataFacts.estimate([row, row])
    assert (facts.rows, facts.completion_tokens, facts.task_types) == (2, 20, {"chat"})
    assert 200 <= facts.prompt_tokens <= 250

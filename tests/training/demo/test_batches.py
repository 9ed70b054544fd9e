import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from configs import embedded
from training.demo.batches import IGNORED, Encoded, batches, collate, encode, encode_answers
from training.demo.loop import fit, rate_at


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded.BASE)


def row(length: int) -> Encoded:
    return Encoded(tuple(range(length)), (True,) * length)


def test_only_what_the_assistant_says_counts(tokenizer: Any) -> None:
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Where is my parcel?"},
        {"role": "assistant", "content": "order_tracking"},
    ]
    encoded = encode_answers(tokenizer, chat, 2048)
    counted = [token for token, counts in zip(encoded.ids, encoded.counts, strict=True) if counts]
    assert tokenizer.decode(counted) == "order_tracking<|im_end|>"


def test_an_answer_past_the_context_is_refused(tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "x " * 100}, {"role": "assistant", "content": "y"}]
    with pytest.raises(ValueError, match="no assistant token within 16 tokens"):
        encode_answers(tokenizer, chat, 16)


def test_plain_text_ends_with_the_end_of_text(tokenizer: Any) -> None:
    encoded = encode(tokenizer, "A clause.", 2048)
    assert encoded.ids[-1] == tokenizer.pad_token_id
    assert all(encoded.counts)


def test_batches_hold_their_size_and_every_row_comes_once_an_epoch() -> None:
    rows = [row(length) for length in range(1, 60)]
    taken = []
    for batch in batches(rows, 128, seed=1):
        assert len(batch) * max(len(item.ids) for item in batch) <= 128
        taken += batch
        if len(taken) == len(rows):
            break
    assert sorted(len(item.ids) for item in taken) == list(range(1, 60))


def test_a_row_longer_than_a_batch_comes_alone() -> None:
    assert next(batches([row(500)], 128, seed=1)) == [row(500)]


def test_epochs_differ_and_seeds_repeat() -> None:
    rows = [row(5 + index % 3) for index in range(40)]
    first = list(itertools.islice(batches(rows, 64, seed=1), 12))
    assert first == list(itertools.islice(batches(rows, 64, seed=1), 12))
    assert first != list(itertools.islice(batches(rows, 64, seed=2), 12))


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="no rows"):
        next(batches([], 64, seed=1))


def test_padding_has_no_loss() -> None:
    ids, labels = collate([Encoded((5, 6, 7), (False, True, True)), Encoded((8,), (True,))], pad=0)
    assert ids.tolist() == [[5, 6, 7], [8, 0, 0]]
    assert labels.tolist() == [[IGNORED, 6, 7], [8, IGNORED, IGNORED]]


def test_the_rate_rises_and_falls() -> None:
    rates = [rate_at(step, 100, 1.0) for step in range(100)]
    assert max(rates) == rates[3] == 1.0
    assert rates[:4] == sorted(rates[:4])
    assert rates[3:] == sorted(rates[3:], reverse=True)
    assert 0 < rates[-1] < 0.05


def diverging() -> Any:
    """A model whose loss is not a number: the fault is injected, torch gives no way to ask for it."""
    import torch

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2, 2))

        def forward(self, input_ids: Any, labels: Any) -> Any:
            return SimpleNamespace(loss=self.weight.sum() * float("nan"))

    return Model()


def test_a_loss_that_is_no_number_stops_the_training() -> None:
    from rich.console import Console

    from training.demo.loop import TrainingDiverged

    feed = batches([row(4)], 64, seed=1)
    with pytest.raises(TrainingDiverged, match="at step 0"):
        fit(diverging(), feed, steps=3, peak_rate=1e-3, pad=0, title="x", console=Console(quiet=True))

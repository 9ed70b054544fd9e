from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs import embedded
from tests.training.trainer.conftest import Train, line, lines, write_dataset
from training.trainer import TrainingConfig
from training.trainer.batches import Batch
from training.trainer.model import load_tokenizer
from training.trainer.replay import FILE, Rehearsal, Stopped, general_questions, rows_wanted, weighed_as_cases
from training.trainer.rows import ChatFormat, Row
from training.trainer.step import summed_loss

Configure = Callable[..., TrainingConfig]


def general_set() -> list[str]:
    return [json.loads(text)["question"] for text in embedded.GENERAL_SET.read_text().splitlines()]


@pytest.fixture
def with_a_question(tmp_path: Path) -> Path:
    """30 cases and one general question."""
    return write_dataset(tmp_path / "many", [*lines(30), line(general_set()[0], "Paris")], lines(6, start=30))


@pytest.mark.parametrize(
    ("rows", "general", "wanted"), [(150, 42, 0), (840, 42, 0), (1000, 42, 750), (10_000, 42, 2500), (10_000, 0, 0)]
)
def test_rows_are_added_where_general_questions_are_few(rows: int, general: int, wanted: int) -> None:
    assert rows_wanted(rows, general) == wanted


def test_what_is_said_has_no_more_to_learn_than_cases_have() -> None:
    short, long = ([Row(np.arange(length, dtype=np.int32), 4)] for length in (8, 24))
    assert weighed_as_cases(long, short)[0].weight == pytest.approx(0.2)
    assert weighed_as_cases(short, long)[0].weight == 1.0
    assert weighed_as_cases([], short) == []


def test_general_questions_are_told_from_cases() -> None:
    asked = general_set()[3]
    system = {"role": "system", "content": "You are terse."}
    longer = line(asked, "x") | {"messages": [system, {"role": "user", "content": asked}]}
    assert general_questions([line("a case", "x"), line(asked, "x"), longer]) == [asked]


def test_the_base_says_new_questions_and_its_own_answers() -> None:
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(str(embedded.BASE))
    base = AutoModelForCausalLM.from_pretrained(embedded.BASE).eval()
    seeds = general_set()[:20]
    said, again = (Rehearsal(base, tokenizer, batch=16).say(seeds, 8, seed) for seed in (1, 1))
    assert said == again
    questions = [row["messages"][0]["content"] for row in said]
    assert len(set(questions)) == 8
    assert not set(questions) & set(general_set())
    assert all(row["completion"] for row in said)
    known = frozenset({re.sub(r"\W+", " ", questions[0].lower()).strip()})
    without = Rehearsal(base, tokenizer, batch=16, known=known).say(seeds, 4, 1)
    assert questions[0] not in {row["messages"][0]["content"] for row in without}
    assert ChatFormat(tokenizer).encode(said, 256).too_long == 0


def test_a_template_without_an_end_of_turn_leaves_nothing_to_say(base: Path) -> None:
    tokenizer = load_tokenizer(str(base))
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}\n{% endfor %}"
    assert ChatFormat(tokenizer).question_frame() is None


def test_what_is_said_is_learned_and_said_once(
    configure: Configure, run: Train, log: StringIO, with_a_question: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def say(_: Rehearsal, seeds: Sequence[str], wanted: int, seed: int) -> list[Any]:
        asked.append((list(seeds), wanted, seed))
        return [line(f"question {number}", "answer") for number in range(3)]

    monkeypatch.setattr(Rehearsal, "say", say)
    config = configure(dataset=with_a_question)
    for _ in range(2):
        result = run(config)
        assert result is not None
        assert result["rows"] == 34
    assert asked == [([general_set()[0]], 23, config.seed)]
    assert "3 of them the base has said itself" in log.getvalue()


@pytest.mark.parametrize("packing", [False, True])
def test_what_is_said_counts_less_where_it_is_longer_than_labels(
    configure: Configure, run: Train, with_a_question: Path, monkeypatch: pytest.MonkeyPatch, *, packing: bool
) -> None:
    long = [line(f"question {number}", "a long answer, longer than any label is, to a question") for number in range(3)]
    monkeypatch.setattr(Rehearsal, "say", lambda *_: long)
    lightest = []

    def loss(model: Any, batch: Batch) -> Any:
        lightest.append(1.0 if batch.weights is None else float(batch.weights.min()))
        return summed_loss(model, batch)

    assert run(configure(dataset=with_a_question, packing=packing), loss=loss) is not None
    assert 0 < min(lightest) < 0.5


def test_a_run_that_began_without_goes_on_without(
    configure: Configure, run: Train, log: StringIO, with_a_question: Path
) -> None:
    config = configure(dataset=with_a_question)
    (config.output / "checkpoints" / "step-00000001").mkdir(parents=True)
    result = run(config)
    assert result is not None
    assert (result["rows"], result["replayed"]) == (31, 0)


def test_a_run_that_is_stopped_while_the_base_speaks_leaves_nothing(
    configure: Configure, run: Train, with_a_question: Path
) -> None:
    config = configure(dataset=with_a_question)
    assert run(config, stopping=lambda: True) is None
    assert not (config.output / FILE).exists()
    assert not list((config.output / "checkpoints").glob("*"))


def test_without_memory_to_speak_it_trains_on_the_cases(
    configure: Configure, run: Train, with_a_question: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def say(*_: Any) -> list[Any]:
        raise MemoryError

    monkeypatch.setattr(Rehearsal, "say", say)
    result = run(configure(dataset=with_a_question))
    assert result is not None
    assert result["rows"] == 31


def test_at_the_limit_what_was_said_is_enough(base: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base).eval()
    assert Rehearsal(model, load_tokenizer(str(base)), limit_s=0).say(["a b"], 4, 0) == []


def test_stopping_is_asked_while_the_base_speaks(base: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base).eval()
    with pytest.raises(Stopped):
        Rehearsal(model, load_tokenizer(str(base)), lambda: True).say(["a b"], 4, 0)

"""The larger base learns on whole blocks of both kinds of text, and its folder is read as any base is."""

from __future__ import annotations

import json
import lzma
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from bench.larger_base import Plan, draws, encoded, from_starts, make, read_text, running, sample
from training.demo.batches import encode
from training.demo.reading import Document
from training.demo.recipe import Recipe

ROWS = [np.array(row, dtype=np.int32) for row in ([1, 2, 3], [4, 5], [6, 7, 8, 9], [10])]


def test_text_is_read_plain_and_compressed(tmp_path: Path) -> None:
    lines = "".join(json.dumps({"text": text}) + "\n" for text in ("one\ntwo", "drei ß"))
    (tmp_path / "plain.jsonl").write_text(lines, encoding="utf-8")
    (tmp_path / "text.jsonl.xz").write_bytes(lzma.compress(lines.encode()))
    assert read_text(tmp_path / "plain.jsonl") == read_text(tmp_path / "text.jsonl.xz") == ["one\ntwo", "drei ß"]


def test_running_blocks_lose_only_what_fills_no_block() -> None:
    assert running(ROWS, 4).tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_each_block_of_documents_starts_with_one() -> None:
    assert from_starts(ROWS, 4).tolist() == [[1, 2, 3, 4], [6, 7, 8, 9]]


def test_every_block_comes_once_before_any_comes_again() -> None:
    blocks = torch.arange(5).reshape(5, 1)
    drawn = torch.cat(list(islice(draws(blocks, 2, seed=0), 5))).flatten().tolist()
    assert sorted(drawn[:5]) == sorted(drawn[5:]) == [0, 1, 2, 3, 4]
    assert next(draws(blocks, 0, seed=0)).shape == (0, 1)


def test_a_sample_ends_when_it_is_large_enough() -> None:
    assert len(list(sample(["abcd"] * 10, 9, seed=0))) == 3
    assert len(list(sample(["abcd"] * 2, 100, seed=0))) == 2


@pytest.mark.parametrize(
    ("plan", "progress"), [(Plan(minutes=1.0), 0.5), (Plan(minutes=1.0, tokens=400), 0.25)], ids=["minutes", "tokens"]
)
def test_the_schedule_ends_by_tokens_or_else_by_time(plan: Plan, progress: float) -> None:
    assert plan.progress(30.0, 100) == progress


def test_a_base_is_written_that_others_read_as_it_was_trained(tmp_path: Path) -> None:
    text = tmp_path / "text.jsonl"
    lines = [f"The bank's account number {number} isn't open;\n\nask again." for number in range(200)]
    text.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines), encoding="utf-8")
    recipe = Recipe(seed=0, vocab_size=400, hidden_size=32, layers=1, heads=2, kv_heads=1, intermediate_size=32)
    plan = Plan(tokens=256, generated=100, length=32, batch=4, micro=2)
    made = make(text, tmp_path / "base", recipe, plan)
    assert (made["steps"], made["tokens"]) == (2, 256)
    assert 0 < made["unread_nats"] < 7
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert model.config.vocab_size == len(tokenizer)
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day"}]
    read: list[Document] = [lines[0], chat]
    for document, row in zip(read, encoded(tokenizer, read), strict=True):
        ids = list(encode(tokenizer, document, 2048).ids)
        assert row.tolist() == ids + [tokenizer.pad_token_id] * (len(row) - len(ids))

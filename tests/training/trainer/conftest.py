from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from configs import embedded
from training.trainer import TrainingConfig
from training.trainer.run import Workshop, train

WORDS = ("apple", "bread", "chair", "drum", "eagle", "flute")
Train = Callable[..., dict[str, Any] | None]


def line(text: str, label: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"id": text, "messages": messages, "completion": label, "tools": None, "task_type": "classification"} | more


def lines(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Cases that a tiny model can learn: the label repeats the first word."""
    rows = range(start, start + count)
    return [line(f"{WORDS[n % len(WORDS)]} number {n}" + " and more" * (n % 5), WORDS[n % len(WORDS)]) for n in rows]


def write_dataset(
    folder: Path, train: Sequence[Mapping[str, Any]], validation: Sequence[Mapping[str, Any]] = ()
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", train), ("validation", validation)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of two layers with the embedded base's tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "base"
    tokenizer = AutoTokenizer.from_pretrained(embedded.BASE)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=96,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data"), lines(24), lines(6, start=24))


@pytest.fixture
def configure(base: Path, dataset: Path, tmp_path: Path) -> Callable[..., TrainingConfig]:
    """A short run on the tiny base; keyword arguments change it."""

    def make(**changes: Any) -> TrainingConfig:
        values = {
            "base": str(base),
            "dataset": dataset,
            "output": tmp_path / "job",
            "device": "cpu",
            "threads": 1,
            "rank": 8,
            "learning_rate": 5e-3,
            "batch_tokens": 128,
            "max_steps": 12,
            "epochs": 20,
            "evaluations": 3,
            "early_stopping": 0,
            "checkpoint_steps": 3,
            "report_to": (),
        }
        config = TrainingConfig(**values | changes)
        config.save()
        return config

    return make


@pytest.fixture
def log() -> StringIO:
    return StringIO()


@pytest.fixture
def run(log: StringIO) -> Iterator[Train]:
    """Train in this process; what the trainer says goes to `log`."""

    def go(config: TrainingConfig, **parts: Any) -> dict[str, Any] | None:
        return train(config, Console(file=log, width=200), Workshop(**parts))

    yield go


def losses(config: TrainingConfig) -> list[float]:
    rows = (config.output / "metrics.jsonl").read_text().splitlines()
    return [json.loads(row)["loss"] for row in rows]

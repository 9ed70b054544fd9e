"""What a configuration leaves open, chosen from the base, the cases and the machine. Plans ask too: no torch here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from adapters_registry.base import BaseModelSpec
from configs.settings import ALLOWED_RANKS
from configs.training import TrainingPreset
from training.trainer.config import TrainingConfig

CHARS_PER_TOKEN = 4.0
"""of English, for estimates without a tokenizer"""
SHORT_TASKS = frozenset({"classification", "intent", "routing", "extraction"})
SHORT_ANSWER_TOKENS = 16
REFERENCE_HIDDEN = 4096
"""hidden size of the models that the usual rates are published for"""
REFERENCE_RATE = 2e-4
RATE_EXPONENT = 0.83
"""2e-4 at hidden size 4096 (QLoRA, arXiv 2305.14314) and 2e-3 at 256 (measured here on the embedded base)"""
REFERENCE_BATCH_TOKENS = 4096
"""tokens of a step at those rates; smaller steps take the root of their share, as Adam's noise does (Malladi et al.,
On the SDEs and Scaling Rules for Adaptive Gradient Algorithms, 2022)"""
FULL_SHARE = 0.1
"""rate of full training over that of LoRA (Schulman et al., LoRA Without Regret, 2025)"""
BITS_PER_PARAMETER = 2.0
"""what a LoRA parameter can hold, of about one bit a completion token (same source)"""
REFERENCE_PASSES = 1000
PASSES_EXPONENT = 1.5
"""cases seen in a run at the reference size, repeats included; smaller models need more, the embedded base 64 times"""
EPOCHS = (2.0, 20.0)
PASS_STEPS = 256
"""steps of a pass over many cases on a processor: with a quarter of them, the embedded base needed twice the passes"""


@dataclass(frozen=True, slots=True)
class BaseFacts:
    """What a base tells without being loaded. `linear_sizes` is the sum of in + out over its linear layers."""

    hidden_size: int
    linear_sizes: int
    context: int | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read config.json and the headers of the weights. Raises SourceError if `folder` is no model."""
        shapes = BaseModelSpec.from_folder(folder, "base").module_shapes
        config = json.loads((folder / "config.json").read_bytes())
        text = config.get("text_config") or config
        return cls(
            hidden_size=int(text["hidden_size"]),
            linear_sizes=sum(sum(shape) for shape in shapes.values()),
            context=text.get("max_position_embeddings"),
        )


@dataclass(frozen=True, slots=True)
class DataFacts:
    """What is learned from, in rows and tokens."""

    rows: int
    prompt_tokens: int
    completion_tokens: int
    task_types: frozenset[str] = frozenset()

    @property
    def mean_tokens(self) -> float:
        """Tokens of a row."""
        return (self.prompt_tokens + self.completion_tokens) / max(1, self.rows)

    @classmethod
    def estimate(cls, lines: Iterable[dict[str, Any]]) -> Self:
        """From lines of a dataset's train.jsonl, by their characters."""
        rows = prompt = completion = 0
        tasks = set()
        for line in lines:
            rows += 1
            prompt += len(json.dumps(line["messages"], ensure_ascii=False))
            completion += len(line["completion"])
            tasks.add(str(line.get("task_type") or ""))
        return cls(rows, round(prompt / CHARS_PER_TOKEN), round(completion / CHARS_PER_TOKEN), frozenset(tasks))


def resolve(
    config: TrainingConfig, preset: TrainingPreset | None, base: BaseFacts, data: DataFacts, *, on_gpu: bool = False
) -> TrainingConfig:
    """`config` with every open field chosen; `preset` (or None) decides before the rules do."""
    chosen: dict[str, Any] = {}
    if preset is not None:
        wanted = preset.model_dump(exclude={"enabled", "record"}, exclude_none=True)
        chosen = {key: value for key, value in wanted.items() if key not in config.model_fields_set}
    config = config.model_copy(update=chosen)
    rank = config.rank or adaptive_rank(base, data, config.max_rank)
    length = config.max_length or 2048
    batch = config.batch_tokens or _batch_tokens(data, on_gpu)
    filled: dict[str, Any] = {
        "rank": rank,
        "alpha": config.alpha or 2.0 * rank,
        "learning_rate": (config.learning_rate or _rate(config, base, batch)) * config.learning_rate_multiplier,
        "learning_rate_multiplier": 1.0,
        "lora_plus_ratio": config.lora_plus_ratio or 2.0,
        "epochs": config.epochs or _epochs(base, data),
        "max_length": min(length, base.context) if base.context else length,
        "batch_tokens": batch,
        "micro_tokens": config.micro_tokens or math.ceil(batch / config.launcher.processes),
        "packing": bool(config.packing),
        "gradient_checkpointing": on_gpu if config.gradient_checkpointing is None else config.gradient_checkpointing,
    }
    return config.model_copy(update=filled)


def adaptive_rank(base: BaseFacts, data: DataFacts, max_rank: int) -> int:
    """The smallest allowed rank that is large enough for the task and for the completions, and at most `max_rank`.

    For the task: 16 where answers are short (labels, extraction), 32 for free text. For the completions: as many
    parameters as hold one bit a token at BITS_PER_PARAMETER, which only small bases with much data exceed.
    """
    short = bool(data.task_types) and data.task_types <= SHORT_TASKS
    short = short or data.completion_tokens <= SHORT_ANSWER_TOKENS * data.rows
    for_task = 16 if short else 32
    for_data = data.completion_tokens / BITS_PER_PARAMETER / max(1, base.linear_sizes)
    wanted = max(for_task, for_data)
    allowed = [rank for rank in ALLOWED_RANKS if rank <= max_rank]
    return next((rank for rank in allowed if rank >= wanted), allowed[-1])


def _rate(config: TrainingConfig, base: BaseFacts, batch_tokens: int) -> float:
    rate = REFERENCE_RATE * math.pow(REFERENCE_HIDDEN / base.hidden_size, RATE_EXPONENT)
    rate *= math.sqrt(min(1.0, batch_tokens / REFERENCE_BATCH_TOKENS))
    return rate * FULL_SHARE if config.method == "full" else rate


def _epochs(base: BaseFacts, data: DataFacts) -> float:
    passes = REFERENCE_PASSES * math.pow(REFERENCE_HIDDEN / base.hidden_size, PASSES_EXPONENT)
    return min(max(math.ceil(passes / max(1, data.rows)), EPOCHS[0]), EPOCHS[1])


def _batch_tokens(data: DataFacts, on_gpu: bool) -> int:
    """A pass of `PASS_STEPS` steps, within what learns well and keeps the device busy. Few cases need small steps."""
    step = round(data.rows * data.mean_tokens / PASS_STEPS)
    least = max(256, round(8 * data.mean_tokens))
    return max(least, 8192) if on_gpu else max(min(step, 4096), min(least, 4096))

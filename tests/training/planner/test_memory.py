"""Predictions against what PyTorch allocates, and against peaks measured on an H200."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from tests.training.planner.peaks import PeakBytes
from training.planner import Recipe, load_shape, memory_of, shape_of
from training.planner.memory import GIB, NF4_BITS

WIDE = {
    "model_type": "qwen2",
    "vocab_size": 256,
    "hidden_size": 64,
    "intermediate_size": 320,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": False,
}
LARGE_VOCABULARY = WIDE | {"vocab_size": 3000, "intermediate_size": 128, "num_hidden_layers": 2}
BASE = Recipe(method="lora", rank=4, batch=1, length=128, kernels="trl", loss="plain")
MISS = 0.10
"""largest share by which a prediction may miss"""


@pytest.mark.parametrize(
    ("config", "recipe"),
    [
        (WIDE, BASE),
        (WIDE, replace(BASE, checkpointed_layers=0)),
        (WIDE, replace(BASE, compute="fp32", checkpointed_layers=0, dropout=0.1)),
        (WIDE, replace(BASE, compute="fp32", checkpointed_layers=0)),
        (WIDE, replace(BASE, compute="fp32", method="full")),
        (WIDE, replace(BASE, compute="fp32", method="full", checkpointed_layers=0)),
        (LARGE_VOCABULARY, BASE),
        (LARGE_VOCABULARY, replace(BASE, checkpointed_layers=0)),
        (WIDE | {"model_type": "gemma2", "head_dim": 16}, replace(BASE, checkpointed_layers=0)),
        (WIDE | {"model_type": "qwen3", "head_dim": 16}, replace(BASE, checkpointed_layers=0)),
    ],
)
def test_a_step_takes_what_is_predicted(config: dict[str, Any], recipe: Recipe) -> None:
    moment = memory_of(shape_of(config, "small"), recipe).peak
    predicted = moment.total - moment.parts["weights"] - moment.parts["adapter"] - moment.parts["optimiser"]
    assert predicted == pytest.approx(_allocated(config, recipe), rel=MISS)


def _allocated(config: dict[str, Any], recipe: Recipe) -> int:
    """Bytes that one forward and backward pass allocates at most, weights not counted."""
    dtype = torch.bfloat16 if recipe.compute == "bf16" else torch.float32
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=dtype)
    model.config.use_cache = False
    if recipe.method == "lora":
        lora = LoraConfig(
            r=recipe.rank, lora_dropout=recipe.dropout, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, lora, autocast_adapter_dtype=False)
        model.enable_input_require_grads()
    if recipe.checkpointed_layers is None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    ids = torch.zeros((recipe.batch, recipe.length), dtype=torch.long)
    with PeakBytes([*model.parameters(), *model.buffers(), ids]) as counted:
        model(input_ids=ids, labels=ids).loss.backward()
    return counted.peak


@pytest.mark.parametrize(
    ("kernels", "batch", "gib"),
    [("trl", 2, 7.28), ("trl", 8, 12.95), ("liger", 2, 7.06), ("unsloth", 2, 6.66), ("unsloth", 8, 8.98)],
)
def test_measured_peaks_of_a_7b_model_are_predicted(kernels: str, batch: int, gib: float) -> None:
    memory = memory_of(load_shape("7b"), Recipe(kernels=kernels, batch=batch))
    assert memory.peak.total / GIB == pytest.approx(gib, rel=0.04)


def test_four_bit_packs_the_blocks_matrices_alone() -> None:
    shape = load_shape("7b")
    held = memory_of(shape, Recipe()).peak.parts["weights"]
    counts = shape.parameters
    assert held == round(counts.linear_weights * NF4_BITS / 8) + 2 * (counts.total - counts.linear_weights)
    assert 0.3 < held / (2 * counts.total) < 0.4


def test_every_way_of_saving_memory_saves_some() -> None:
    shape = load_shape("7b")
    peaks = [
        memory_of(shape, recipe).peak.total
        for recipe in (
            Recipe(method="full"),
            Recipe(method="lora", checkpointed_layers=0),
            Recipe(method="lora", checkpointed_layers=14),
            Recipe(method="lora"),
            Recipe(),
            Recipe(batch=1),
            Recipe(batch=1, host_embedding=True),
            Recipe(batch=1, host_embedding=True, offload=True),
        )
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert len(set(peaks)) == len(peaks)


def test_eight_bit_states_are_a_quarter_of_adams() -> None:
    shape = load_shape("1.5b")
    plain, small = (memory_of(shape, Recipe(method="full", optimiser=name)) for name in ("adamw", "paged_adamw_8bit"))
    assert small.largest("optimiser") / plain.largest("optimiser") == pytest.approx(0.254, abs=0.001)


def test_what_is_offloaded_lies_in_host_memory() -> None:
    shape = load_shape("7b")
    here, away = memory_of(shape, Recipe(batch=8)), memory_of(shape, Recipe(batch=8, offload=True))
    assert here.host == 0
    assert away.host == 28 * 8 * 2048 * 3584 * 2
    assert here.largest("activations") - away.largest("activations") == away.host * 26 // 28


def test_only_tokens_with_labels_need_logits() -> None:
    shape = load_shape("7b")
    every, few = (memory_of(shape, Recipe(loss="plain", labelled=share)) for share in (1.0, 0.1))
    assert few.largest("logits") == pytest.approx(every.largest("logits") / 10, rel=0.01)

"""Bytes on disk that a run and its exports take."""

from __future__ import annotations

from dataclasses import dataclass

from training.planner.memory import trained
from training.planner.recipe import Recipe
from training.planner.shape import ModelShape

KEPT_CHECKPOINTS = 2
_Q8_BYTES = 34 / 32
"""GGUF Q8_0: blocks of 32 bytes with a 16-bit scale"""


@dataclass(frozen=True, slots=True)
class Storage:
    """Bytes of each kind of file. `adapter` is 0 for full fine-tuning."""

    adapter: int
    checkpoints: int
    merged: int
    gguf_q8: int
    gguf_f16: int


def storage_of(shape: ModelShape, recipe: Recipe) -> Storage:
    """Files of a run: tensors alone, without the few kB of their headers."""
    counts = shape.parameters
    count, size = trained(shape, recipe)
    states = 2 * count * (size if recipe.optimiser == "adamw" else 1)
    matrices = counts.total - counts.norms - _biases(shape)
    small = 4 * (counts.total - matrices)  # GGUF keeps vectors in fp32
    return Storage(
        adapter=0 if recipe.method == "full" else count * size,
        checkpoints=KEPT_CHECKPOINTS * (count * size + states),
        merged=2 * counts.total,
        gguf_q8=round(matrices * _Q8_BYTES) + small,
        gguf_f16=2 * matrices + small,
    )


def _biases(shape: ModelShape) -> int:
    return shape.layers * sum(linear.parameters - linear.weights for linear in shape.linears)

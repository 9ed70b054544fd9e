"""How long a run takes: operations from the shape, rates measured on one card and scaled to others by their data sheet.

A step takes `layers * layer_s + operations / (tflops * efficiency)`. Both constants of `recipe.Kernels` come from two
measured batches (TRL, Unsloth, the fast path; H200, Qwen2.5-7B shape, 2048-token rows) or, with TRL's `layer_s`, from
one (Liger). The fast path with nothing computed twice is 9 % slower than they say. On other cards the same
shares are assumed: an estimate, to be replaced by a measurement.
"""

from __future__ import annotations

from dataclasses import dataclass

from training.planner.cards import Card
from training.planner.recipe import Recipe
from training.planner.shape import ModelShape

_MATRIX_SHARE = 0.76
"""share of an H200's dense rate that its matrix products reach at this size: 17,000 tokens/s of Qwen2.5-7B"""


@dataclass(frozen=True, slots=True)
class Speed:
    """Tokens/s as expected, and as the card's matrix rate would allow."""

    tokens_per_s: float
    limit: float
    flop_per_token: float


def speed_of(shape: ModelShape, recipe: Recipe, card: Card) -> Speed | None:
    """What to expect; None for a card whose rate is not known."""
    if not card.tflops:
        return None
    operations, how = flop_per_token(shape, recipe), recipe.how(shape)
    rate = card.tflops * 1e12
    launches = 0.0 if card.cpu else shape.layers * how.layer_s
    step = launches + recipe.tokens * operations / (rate * how.efficiency)
    return Speed(recipe.tokens / step, rate * _MATRIX_SHARE / operations, operations)


def flop_per_token(shape: ModelShape, recipe: Recipe) -> float:
    """Operations of a forward and a backward pass, a token; two for each multiply-add.

    The products with the weights cost 2 each forward, as much again for the gradient of their input, as much again for
    that of the weight where it learns (Kaplan et al., arXiv:2001.08361, section 2.1), and a forward more in blocks that
    are computed again. Causal attention costs 2 * length * width forward in each block, 2.5 times that backward.
    """
    counts = shape.parameters
    again = recipe.checkpoints(shape.layers) / shape.layers
    passes = 2 + again + (1 if recipe.method == "full" else 0)
    learned = 0 if recipe.method == "full" else 6 * shape.lora_parameters(recipe.rank)
    blocks = 2 * counts.linear_weights * passes + learned
    head = 2 * counts.head_table * (3 if recipe.method == "full" else 2)
    attention = 2 * recipe.length * shape.q_width * shape.layers * (3.5 + again)
    return float(blocks + head + attention)

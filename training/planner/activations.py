"""What a block and the loss keep in memory for the backward pass, counted tensor by tensor."""

from __future__ import annotations

import math

from training.planner.recipe import BYTES, Recipe
from training.planner.shape import ModelShape

_FAST_LOGITS = 2**28
_FAST_ROWS = 128
"""logits that the fast path's loss makes at a time, in whole numbers of so many rows"""


class Activations:
    """Bytes of one block, for all tokens of a batch.

    `entry` is its input, all that a checkpoint keeps; `made` is what it keeps beyond that, `kept` all that it keeps
    without checkpointing. `in_flight` is alive beside those while the MLP runs backward, and `scratch` is what a weight
    in 16 bits takes then. `head` is what the last norm keeps. `offloads`: checkpoints wait in host memory.
    """

    def __init__(self, shape: ModelShape, recipe: Recipe) -> None:
        self._shape, self._recipe, self._how = shape, recipe, recipe.how(shape)
        self._size = BYTES[recipe.compute]
        tokens, norm = recipe.tokens, 4 if self._how.norm_in_fp32 else self._size
        self.offloads = recipe.offload or self._how.offloads
        self.entry = tokens * self._size * shape.hidden
        self.made = tokens * self._made_per_token()
        # the first norm's fp32 copy stands for the input; without such a copy, the input itself is kept
        self.kept = self.made + (0 if self._how.norm_in_fp32 else self.entry)
        self.head = tokens * shape.hidden * (norm + self._size)
        self.in_flight, self.scratch = self._in_flight()

    def _made_per_token(self) -> int:
        shape, recipe, how, size = self._shape, self._recipe, self._how, self._size
        hidden, q, kv, inner = shape.hidden, shape.q_width, shape.kv_width, shape.intermediate
        copies = shape.norms_per_layer if how.norm_in_fp32 else shape.norms_per_layer - 1
        norm = 4 if how.norm_in_fp32 else size
        made = norm * copies * hidden + (norm * (q + kv) if shape.qk_norm else 0)
        made += size * 2 * hidden if how.normed_kept else 0
        made += size * (2 * q + 2 * (q if how.repeats_kv else kv)) + 4 * shape.heads  # q, out; k, v; log-sum-exp
        made += size * how.mlp_kept * inner
        if recipe.method == "full":
            return made + size * shape.norms_per_layer * hidden  # what the norms' weights multiply
        made += size * recipe.rank * len(shape.linears)
        if recipe.dropout and not how.buffers:
            # each LoRA branch keeps a dropped-out input of its own and a mask (on a GPU, of bytes), its input no longer
            mask = 1 if recipe.compute == "bf16" else size
            made += (size + mask) * sum(linear.inputs for linear in shape.linears) - size * (2 * hidden + inner)
        return made

    def _in_flight(self) -> tuple[int, int]:
        shape, recipe, size = self._shape, self._recipe, self._size
        wide, matrix = size * shape.intermediate * recipe.tokens, shape.hidden * shape.intermediate
        stream = 2 * self.entry  # gradients of the residual stream and of the branch
        if recipe.method == "full":
            return stream + wide, size * matrix  # the matrix's gradient, before it is added to the others
        lora = wide * (self._how.mlp_in_flight - 1)
        if recipe.dropout and self._how.buffers:
            lora += wide  # LoRA's part of the gradient, before its draw of dropout is applied
        dequantised = size * matrix if recipe.method == "qlora" else 0
        # the dequantised matrix is gone when LoRA's gradient of the same width is made
        return max(stream + wide + lora, 5 * self.entry), max(0, dequantised - lora)


def logit_bytes(shape: ModelShape, recipe: Recipe) -> int:
    """Logits, their log-probabilities and gradients, at the moment when most of them are alive."""
    size, tokens = BYTES[recipe.compute], math.ceil(recipe.tokens * recipe.labelled)
    if not recipe.fuses_loss(shape):
        # log-probabilities, the gradient that picks the labels, the gradient of the logits, all in fp32
        return 12 * shape.vocabulary * tokens
    gradient = size * shape.hidden * recipe.tokens
    if recipe.how(shape).buffers:
        rows = max(_FAST_LOGITS // shape.vocabulary // _FAST_ROWS, 1) * _FAST_ROWS
        return gradient + size * shape.vocabulary * min(rows, tokens)  # overwritten by their gradient
    return gradient + (size + 8) * shape.vocabulary * _liger_rows(shape, tokens)


def _liger_rows(shape: ModelShape, tokens: int) -> int:
    """Rows whose logits are made at once: so many that they take about what the hidden states of all rows take.

    Liger's rule (arXiv:2410.10989, section 3.2).
    """
    chunks = -(-shape.vocabulary // shape.hidden)
    rows = -(-tokens // chunks)
    return int(min(tokens, 1 << (rows - 1).bit_length()))

"""Peak memory of a training step by part, for one device.

A step has four moments at which memory can peak; each is a sum of parts, and the largest is the peak:

    loss              every block's forward is done; the logits are made and turned into a gradient
    last block        the block nearest the loss runs backward: everything kept for the others is still there
    first block       the backward pass ends: all gradients are there, and little else
    optimiser step    weights, gradients and states

The terms of a block are those of the eager kernels (`recipe.Kernels`), counted tensor by tensor, with attention that
never stores scores (FlashAttention, Dao et al., arXiv:2205.14135). docs/training-memory.md derives them and compares
them with measured peaks. Bytes are what the allocator is asked for (`torch.cuda.max_memory_allocated`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training.planner.recipe import BYTES, Recipe
from training.planner.shape import ModelShape

GIB = 2**30
PARTS = ("weights", "adapter", "gradients", "optimiser", "activations", "logits", "workspace")

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""bits a parameter in NF4 with double quantisation: an 8-bit scale for each 64, an fp32 scale for each 256 of those
(Dettmers et al., arXiv:2305.14314, section 3)"""
ADAM_BYTES = {"adamw": 2, "paged_adamw_8bit": 0}
"""states of Adam, in tensors of the parameters' size; 8-bit ones are counted apart"""
ADAM8_BYTES = 2 * (1 + 4 / 256)
"""bytes a parameter: two 8-bit states, an fp32 scale for each 256"""


@dataclass(frozen=True, slots=True)
class Moment:
    """Bytes by part at one moment of a step."""

    name: str
    parts: Mapping[str, int]

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self.parts.values())


@dataclass(frozen=True, slots=True)
class Memory:
    """What a step needs."""

    moments: tuple[Moment, ...]
    host: int
    """bytes in host memory: what is offloaded"""

    @property
    def peak(self) -> Moment:
        """The moment that needs most."""
        return max(self.moments, key=lambda moment: moment.total)

    def largest(self, part: str) -> int:
        """Most that `part` takes at any moment."""
        return max(moment.parts[part] for moment in self.moments)


def memory_of(shape: ModelShape, recipe: Recipe) -> Memory:
    """Peak memory of one step of `recipe` on `shape`, and what lies in host memory."""
    fixed = _Fixed(shape, recipe)
    tokens = recipe.tokens
    saved = tokens * kept_per_token(shape, recipe)
    entry = tokens * BYTES[recipe.compute] * shape.hidden
    again = recipe.checkpoints(shape.layers)
    offloads = recipe.offload or recipe.how.offloads
    # an offloaded checkpoint is on the card while it is copied: one on its way out, one on its way in
    entries = entry * (min(again, 2) if offloads else again)
    waiting = (shape.layers - again) * saved + entries
    recomputed = saved if again == shape.layers else 0
    flight, workspace = _in_flight(shape, recipe)
    moments = (
        fixed.at("loss", activations=waiting + _head_kept(shape, recipe), logits=_logits(shape, recipe)),
        fixed.at(
            "last block",
            activations=waiting + recomputed + flight,
            workspace=workspace,
            gradients=fixed.head_gradients,
        ),
        fixed.at("first block", activations=entry + saved + flight, workspace=workspace, gradients=fixed.all_gradients),
        fixed.at("optimiser step", gradients=fixed.all_gradients),
    )
    host = (entry * again if offloads else 0) + fixed.host
    return Memory(moments, host)


def kept_per_token(shape: ModelShape, recipe: Recipe) -> int:
    """Bytes that one block keeps for its backward pass, a token."""
    size, how = BYTES[recipe.compute], recipe.how
    hidden, q, kv, inner = shape.hidden, shape.q_width, shape.kv_width, shape.intermediate
    norm = 4 if how.norm_in_fp32 else size
    kept = norm * shape.norms_per_layer * hidden + (norm * (q + kv) if shape.qk_norm else 0)
    kept += size * 2 * hidden  # inputs of the attention's and of the MLP's projections
    kept += size * (2 * q + 2 * (q if how.repeats_kv else kv)) + 4 * shape.heads  # q, out, k, v; log-sum-exp
    kept += size * how.mlp_kept * inner
    if recipe.method == "full":
        return kept + size * shape.norms_per_layer * hidden  # what the norms' weights multiply
    kept += size * recipe.rank * len(shape.linears)
    if recipe.dropout:
        # each LoRA branch keeps its own dropped-out input and a mask of bytes; the inputs are then needed no more
        kept += (size + 1) * sum(linear.inputs for linear in shape.linears) - size * (2 * hidden + inner)
    return kept


def weight_bytes(shape: ModelShape, recipe: Recipe) -> int:
    """Bytes of the base's weights. NF4 packs the blocks' matrices alone: all else stays in 16 bits."""
    counts = shape.parameters
    if recipe.method == "qlora":
        return round(counts.linear_weights * NF4_BITS / 8) + 2 * (counts.total - counts.linear_weights)
    return BYTES[recipe.compute] * counts.total


def trained_bytes(shape: ModelShape, recipe: Recipe) -> tuple[int, int]:
    """(parameters that learn, bytes of each)."""
    if recipe.method == "full":
        return shape.parameters.total, BYTES[recipe.compute]
    return shape.lora_parameters(recipe.rank), 4 if recipe.compute == "fp32" else BYTES[recipe.how.adapter]


class _Fixed:
    """What does not depend on the batch."""

    def __init__(self, shape: ModelShape, recipe: Recipe) -> None:
        count, size = trained_bytes(shape, recipe)
        full = recipe.method == "full"
        states = round(count * (ADAM8_BYTES if recipe.optimiser != "adamw" else 2 * size))
        away = full and recipe.offload
        self.host = states if away else 0
        self._always = {
            "weights": weight_bytes(shape, recipe),
            "adapter": 0 if full else count * size,
            "optimiser": 0 if away else states,
        }
        self.all_gradients = count * size
        head = shape.parameters.head_table * size if full else 0
        # accumulated gradients stay from one pass to the next
        self.head_gradients = self.all_gradients if recipe.accumulate > 1 else head
        self._before = self.all_gradients if recipe.accumulate > 1 else 0

    def at(self, name: str, **parts: int) -> Moment:
        return Moment(name, {part: 0 for part in PARTS} | self._always | {"gradients": self._before} | parts)


def _in_flight(shape: ModelShape, recipe: Recipe) -> tuple[int, int]:
    """(activations, workspace) beside what is kept, while the MLP of a block runs backward."""
    size, tokens = BYTES[recipe.compute], recipe.tokens
    wide = size * shape.intermediate * tokens
    matrix = shape.hidden * shape.intermediate
    stream = 2 * size * shape.hidden * tokens  # gradients of the residual stream and of the branch
    if recipe.method == "full":
        return stream + wide, size * matrix  # the matrix's gradient, before it is added to the others
    dequantised = 2 * matrix if recipe.method == "qlora" else 0
    lora = wide * (recipe.how.mlp_in_flight - 1)
    # the dequantised matrix is gone when LoRA's gradient of the same width is made
    return stream + wide + lora, max(0, dequantised - lora)


def _head_kept(shape: ModelShape, recipe: Recipe) -> int:
    """The last norm's input and output."""
    return (
        recipe.tokens
        * shape.hidden
        * ((4 if recipe.how.norm_in_fp32 else BYTES[recipe.compute]) + BYTES[recipe.compute])
    )


def _logits(shape: ModelShape, recipe: Recipe) -> int:
    """Logits, their log-probabilities and gradients, at the moment when most of them are alive."""
    size = BYTES[recipe.compute]
    if recipe.loss == "plain":
        # log-probabilities, the gradient that picks the labels, the gradient of the logits, all in fp32
        return 12 * shape.vocabulary * recipe.tokens
    # a gradient for every row; logits, fp32 logits and gradient for the rows of one chunk
    return size * shape.hidden * recipe.tokens + (size + 8) * shape.vocabulary * chunk_rows(shape, recipe.tokens)


def chunk_rows(shape: ModelShape, tokens: int) -> int:
    """Rows whose logits are made at once: so many that they take what the hidden states of all rows take.

    The rule is Liger's (arXiv:2410.10989, section 3.2).
    """
    chunks = -(-shape.vocabulary // shape.hidden)
    rows = -(-tokens // chunks)
    return min(tokens, 1 << (rows - 1).bit_length())

"""Peak memory of a training step by part, for one device.

A step has four moments at which memory can peak; each is a sum of parts, and the largest is the peak:

    loss              every block's forward is done; logits are made and turned into a gradient
    last block        the block nearest the loss runs backward: everything kept for the others is still there
    first block       the backward pass ends: all gradients are there, and little else
    optimiser step    weights, gradients and states

The terms of a block are those of its kernels (`recipe.Kernels`), counted tensor by tensor (`activations`), with
attention that never stores scores (FlashAttention, Dao et al., arXiv:2205.14135). docs/training-memory.md derives them
and compares them with measured peaks. Bytes are what the allocator is asked for (`torch.cuda.max_memory_allocated`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from training.planner.activations import Activations, logit_bytes
from training.planner.recipe import BYTES, Recipe
from training.planner.shape import ModelShape

GIB = 2**30
PARTS = ("weights", "adapter", "gradients", "optimiser", "activations", "logits", "workspace")

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""bits a parameter in NF4 with double quantisation: an 8-bit scale for each 64, an fp32 scale for each 256 of those
(Dettmers et al., arXiv:2305.14314, section 3)"""
ADAM8_BYTES = 2 * (1 + 4 / 256)
"""bytes a parameter of 8-bit Adam: two states, an fp32 scale for each 256 (bitsandbytes; arXiv:2110.02861)"""
MASTER_BYTES = 4
"""full fine-tuning holds weights, gradients and states in fp32; autocast makes 16-bit copies"""


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
    """What a step needs; `host` bytes more lie in host memory, offloaded."""

    moments: tuple[Moment, ...]
    host: int

    @property
    def peak(self) -> Moment:
        """The moment that needs most."""
        return max(self.moments, key=lambda moment: moment.total)

    def largest(self, part: str) -> int:
        """Most that `part` takes at any moment."""
        return max(moment.parts[part] for moment in self.moments)


def memory_of(shape: ModelShape, recipe: Recipe) -> Memory:
    """What one step of `recipe` on `shape` needs."""
    fixed, block = _Fixed(shape, recipe), Activations(shape, recipe)
    again = recipe.checkpoints(shape.layers)
    # an offloaded checkpoint is on the card while it is copied: one on its way out, one on its way in
    entries = block.entry * (min(again, 2) if block.offloads else again)
    waiting = (shape.layers - again) * block.kept + entries
    recomputed = block.made if again == shape.layers else 0
    buffers = fixed.buffers or block.scratch
    moments = (
        fixed.at(
            "loss",
            activations=waiting + block.head,
            logits=logit_bytes(shape, recipe),
            workspace=fixed.buffers + fixed.copies,
        ),
        fixed.at(
            "last block",
            activations=waiting + recomputed + block.in_flight,
            workspace=buffers + fixed.copies * (shape.layers - again) // shape.layers,
            gradients=fixed.head_gradients,
        ),
        fixed.at(
            "first block",
            activations=block.entry + block.made + block.in_flight,
            workspace=buffers,
            gradients=fixed.first_gradients,
        ),
        fixed.at("optimiser step", gradients=fixed.gradients, workspace=fixed.buffers),
    )
    return Memory(moments, fixed.host + (block.entry * again if block.offloads else 0))


def trained(shape: ModelShape, recipe: Recipe) -> tuple[int, int]:
    """(parameters that learn, bytes of each)."""
    if recipe.method == "full":
        return shape.parameters.total, MASTER_BYTES
    return shape.lora_parameters(recipe.rank), max(BYTES[recipe.compute], BYTES[recipe.how(shape).adapter])


def weight_bytes(shape: ModelShape, recipe: Recipe) -> int:
    """Bytes of the base's weights. NF4 packs the blocks' matrices alone: all else stays in 16 bits."""
    counts = shape.parameters
    if recipe.method == "qlora":
        return round(counts.linear_weights * NF4_BITS / 8) + 2 * (counts.total - counts.linear_weights)
    return counts.total * (MASTER_BYTES if recipe.method == "full" else BYTES[recipe.compute])


class _Fixed:
    """What does not depend on the batch."""

    def __init__(self, shape: ModelShape, recipe: Recipe) -> None:
        count, size = trained(shape, recipe)
        full = recipe.method == "full"
        states = round(count * ADAM8_BYTES) if recipe.optimiser == "paged_adamw_8bit" else 2 * count * size
        table_away = 2 * shape.parameters.embeddings if recipe.host_embedding and not shape.tied and not full else 0
        self.host = table_away
        self.buffers = _weight_buffers(shape, recipe) if recipe.how(shape).buffers else 0
        # autocast's copies live through the forward pass, and then as long as a block that is not computed again
        casts = full and recipe.compute == "bf16"
        self.copies = 2 * (shape.parameters.linear_weights + shape.parameters.head_table) if casts else 0
        self.gradients = count * size
        # accumulated gradients stay from one pass to the next
        self._standing = self.gradients if recipe.accumulate > 1 else 0
        self.head_gradients = self._standing or (shape.parameters.head_table * size if full else 0)
        self.first_gradients = self._standing or (
            self.gradients - size * _still_to_come(shape) if full else count * size
        )
        self._always = {
            "weights": weight_bytes(shape, recipe) - table_away,
            "adapter": 0 if full else count * size,
            "optimiser": states,
        }

    def at(self, name: str, **parts: int) -> Moment:
        return Moment(name, dict.fromkeys(PARTS, 0) | self._always | {"gradients": self._standing} | parts)


def _still_to_come(shape: ModelShape) -> int:
    """Parameters of a full fine-tuning whose gradients come last: the first block's, and an untied embedding's."""
    counts = shape.parameters
    block = (counts.attention + counts.mlp) // shape.layers
    return block + (0 if shape.tied else counts.embeddings)


def _weight_buffers(shape: ModelShape, recipe: Recipe) -> int:
    """Two buffers of the fast path: gate and up with their adapters, and the largest of the other groups."""
    q, k, v, out, gate, up, down = shape.linears
    size, ranks = BYTES[recipe.compute], recipe.rank
    group = [
        sum(linear.outputs for linear in members) * members[0].inputs
        + len(members) * ranks * (sum(linear.outputs for linear in members) + members[0].inputs)
        for members in ((gate, up), (q, k, v), (out,), (down,))
    ]
    return size * (group[0] + max(group[1:]))

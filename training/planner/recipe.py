"""How a model is trained, as far as memory and time depend on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from configs.training import Method
from training.planner.errors import RecipeError
from training.planner.shape import ModelShape

Compute = Literal["bf16", "fp32"]
Optimiser = Literal["adamw", "paged_adamw_8bit"]
Loss = Literal["auto", "fused", "plain"]
AUTO: Literal["auto"] = "auto"
BYTES: Mapping[str, int] = MappingProxyType({"bf16": 2, "fp32": 4})


@dataclass(frozen=True, slots=True)
class Kernels:
    """What one implementation of a block keeps for its backward pass, counted in the source of each.

    `mlp_kept` tensors of the MLP's inner width are kept, and `mlp_in_flight` more are alive when the backward pass of
    `down_proj` peaks: the gradient through the base weight and the one through LoRA, before they are added.
    `norm_in_fp32`: RMSNorm keeps an fp32 copy of its input instead of the input. `normed_kept`: what the norms make for
    the projections is kept. `repeats_kv`: keys and values are expanded to all heads before attention. `offloads`:
    checkpoints wait in host memory by design. `buffers`: 16-bit weights are written to buffers that stay.
    `fused_loss`: the logits are never held all at once.
    """

    name: str
    mlp_kept: int
    mlp_in_flight: int
    norm_in_fp32: bool = False
    normed_kept: bool = True
    repeats_kv: bool = False
    offloads: bool = False
    buffers: bool = False
    fused_loss: bool = True
    adapter: Compute = "fp32"
    efficiency: float = 0.44
    """share of the card's dense rate that a long step reaches"""
    layer_s: float = 0.0057
    """seconds that a step costs for each layer whatever its size: launches, dequantisation"""


TRL = Kernels("trl", mlp_kept=4, mlp_in_flight=2, norm_in_fp32=True, adapter="bf16")
"""TRL's recipe: `transformers` modules with PEFT, which keep gate, silu(gate), up and their product; adapter in bf16"""
LIGER = Kernels("liger", mlp_kept=3, mlp_in_flight=2, adapter="bf16", efficiency=0.51)
"""TRL with Liger: SwiGLU computes silu again, RMSNorm keeps its input as it is"""
UNSLOTH = Kernels(
    "unsloth", mlp_kept=2, mlp_in_flight=1, repeats_kv=True, offloads=True, efficiency=0.27, layer_s=0.0054
)
"""Unsloth's LoRA MLP keeps gate and up and overwrites them; without FlashAttention it expands the keys and values"""
PLAIN = replace(TRL, name="plain", adapter="fp32", fused_loss=False)
"""this project's trainer where it has no fast path: the same modules, adapter in fp32, logits of all labelled tokens"""
FAST = Kernels("fast", mlp_kept=2, mlp_in_flight=1, normed_kept=False, buffers=True, efficiency=0.62, layer_s=0.0011)
"""this project's fast path (`training.trainer.fast`): a block is one node, keeping its products or its input"""

KERNELS: Mapping[str, Kernels] = MappingProxyType({each.name: each for each in (FAST, PLAIN, TRL, LIGER, UNSLOTH)})
FAST_KINDS = frozenset({"qwen2", "llama"})


@dataclass(frozen=True, slots=True)
class Recipe:
    """A training run. `batch` rows of `length` tokens go through the model at once, `accumulate` times a step."""

    method: Method = "qlora"
    rank: int = 16
    batch: int = 2
    length: int = 2048
    accumulate: int = 1
    checkpointed_layers: int | None = None
    """blocks whose activations are computed again; None: all, 0: none"""
    offload: bool = False
    """checkpoints wait in host memory"""
    loss: Loss = AUTO
    """fused: logits of a few rows at a time; plain: all at once, and fp32 copies; auto: as the kernels do"""
    labelled: float = 1.0
    """share of the tokens that have a label; the others need no logits"""
    dropout: float = 0.0
    optimiser: Optimiser = "adamw"
    compute: Compute = "bf16"
    kernels: str = AUTO
    """a key of KERNELS, or auto: what this project's trainer would run"""
    host_embedding: bool = False
    """an untied embedding waits in host memory (fast path)"""

    def __post_init__(self) -> None:
        for name in ("rank", "batch", "length", "accumulate"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1")
        if (self.checkpointed_layers or 0) < 0:
            raise RecipeError("checkpointed_layers must be at least 0")
        if not 0 < self.labelled <= 1:
            raise RecipeError("labelled must be above 0 and at most 1")
        if not 0 <= self.dropout < 1:
            raise RecipeError("dropout must be at least 0 and below 1")
        if self.kernels not in {AUTO, *KERNELS}:
            raise RecipeError(f"kernels '{self.kernels}' is none of {', '.join((AUTO, *KERNELS))}")

    @property
    def tokens(self) -> int:
        """Tokens that are on the card at once."""
        return self.batch * self.length

    def how(self, shape: ModelShape) -> Kernels:
        """The kernels that run `shape`: the fast path where it knows the model and the recipe."""
        if self.kernels != AUTO:
            return KERNELS[self.kernels]
        fast = shape.kind in FAST_KINDS and self.method != "full" and self.compute == "bf16"
        return FAST if fast else PLAIN

    def fuses_loss(self, shape: ModelShape) -> bool:
        """Whether logits are made a few rows at a time."""
        return self.loss == "fused" if self.loss != AUTO else self.how(shape).fused_loss

    def checkpoints(self, layers: int) -> int:
        """How many of `layers` blocks are computed again."""
        return layers if self.checkpointed_layers is None else min(self.checkpointed_layers, layers)

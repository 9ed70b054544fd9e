"""How a model is trained, as far as memory and time depend on it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Literal

from configs.training import Method
from training.planner.errors import RecipeError

Compute = Literal["bf16", "fp32"]
Optimiser = Literal["adamw", "paged_adamw_8bit"]
Loss = Literal["fused", "plain"]
BYTES: Mapping[str, int] = MappingProxyType({"bf16": 2, "fp32": 4})


@dataclass(frozen=True, slots=True)
class Kernels:
    """What one implementation of a block keeps for its backward pass, counted in the source of each.

    `mlp_kept` tensors of the MLP's inner width are kept, and `mlp_in_flight` more are alive when the backward pass of
    `down_proj` peaks: the gradient through the base weight and the one through LoRA, before they are added.
    `norm_in_fp32`: RMSNorm keeps an fp32 copy of its input instead of the input. `repeats_kv`: keys and values are
    expanded to all heads before attention. `offloads`: checkpoints wait in host memory by design.
    """

    name: str
    mlp_kept: int
    mlp_in_flight: int
    norm_in_fp32: bool
    repeats_kv: bool = False
    offloads: bool = False
    adapter: Compute = "bf16"
    efficiency: float = 0.44
    """share of the card's dense rate that the matrix work reaches on long steps"""
    layer_s: float = 0.0057
    """time that a step costs for each layer whatever its size: launches, dequantisation"""


PLAIN = Kernels("trl", mlp_kept=4, mlp_in_flight=2, norm_in_fp32=True)
"""`transformers` modules with PEFT: gate, silu(gate), up and their product are kept, norms in fp32"""
LIGER = Kernels("liger", mlp_kept=3, mlp_in_flight=2, norm_in_fp32=False, efficiency=0.51)
"""Liger's SwiGLU computes silu again, its RMSNorm keeps the input as it is"""
UNSLOTH = Kernels(
    "unsloth",
    mlp_kept=2,
    mlp_in_flight=1,
    norm_in_fp32=False,
    repeats_kv=True,
    offloads=True,
    adapter="fp32",
    efficiency=0.27,
    layer_s=0.0054,
)
"""Unsloth's LoRA MLP keeps gate and up and overwrites them; without FlashAttention it expands the keys and values"""
NATIVE = replace(LIGER, name="native", adapter="fp32")
"""this project's trainer: fused norms and SwiGLU, adapters in fp32"""

KERNELS: Mapping[str, Kernels] = MappingProxyType({each.name: each for each in (NATIVE, PLAIN, LIGER, UNSLOTH)})


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
    """checkpoints (full fine-tuning: also the optimiser's state) wait in host memory"""
    loss: Loss = "fused"
    """fused: logits of a few rows at a time; plain: all logits, and fp32 copies of them"""
    dropout: float = 0.0
    optimiser: Optimiser = "adamw"
    compute: Compute = "bf16"
    kernels: str = NATIVE.name

    def __post_init__(self) -> None:
        for name in ("rank", "batch", "length", "accumulate"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be at least 1")
        if (self.checkpointed_layers or 0) < 0:
            raise RecipeError("checkpointed_layers must be at least 0")
        if self.kernels not in KERNELS:
            raise RecipeError(f"kernels '{self.kernels}' is none of {', '.join(KERNELS)}")

    @property
    def tokens(self) -> int:
        """Tokens that are on the card at once."""
        return self.batch * self.length

    @property
    def how(self) -> Kernels:
        """The kernels that `kernels` names."""
        return KERNELS[self.kernels]

    def checkpoints(self, layers: int) -> int:
        """How many of `layers` blocks are computed again."""
        return layers if self.checkpointed_layers is None else min(self.checkpointed_layers, layers)

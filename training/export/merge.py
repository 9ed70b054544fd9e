"""The adapter added to its base: W + scale * B A, tensor by tensor in float32.

`scale` is alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732), each module with its own rank and alpha.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapters_registry import BaseModelSpec, RegistryError
from adapters_registry.base import WRAPPERS
from adapters_registry.digest import CONFIG_FILE, WEIGHTS_FILE
from adapters_registry.peft_config import LoraConfig, read_config
from adapters_registry.validation import LoraTensor, check_adapter
from adapters_registry.weights import read_header
from training.export.checkpoint import Checkpoint, Reader, read_json
from training.export.errors import ExportRefused

if TYPE_CHECKING:
    import torch

ANY_RANK = 1 << 30


@dataclass(frozen=True)
class Pair:
    """One adapted layer: `a` (rank, in) and `b` (out, rank) by their names in the adapter's file."""

    a: str
    b: str
    scale: float


@dataclass(frozen=True)
class Merge:
    """A base with an adapter that fits it; `pairs` by the base's own tensor names."""

    base: Checkpoint
    adapter: Path
    pairs: dict[str, Pair]

    @classmethod
    def plan(cls, base: Checkpoint, adapter: Path) -> Merge:
        """Check the PEFT folder `adapter` against `base`. Raises ExportRefused with the reason."""
        if read_json(adapter / CONFIG_FILE).get("fan_in_fan_out"):
            raise ExportRefused(
                "the adapter was trained on transposed weights (fan_in_fan_out, as GPT-2 has them); such layers are "
                "not merged"
            )
        try:
            config = read_config((adapter / CONFIG_FILE).read_bytes())
            spec = BaseModelSpec.from_folder(base.folder, "base", max_lora_rank=ANY_RANK, per_module_scaling=True)
            with (adapter / WEIGHTS_FILE).open("rb") as file:
                checked = check_adapter(config, read_header(file), spec)
        except RegistryError as error:
            raise ExportRefused(error.message) from None
        except OSError as error:
            raise ExportRefused(f"cannot read {adapter}: {error.strerror}") from None
        return cls(base, adapter, _pairs(base, config, checked.tensors))

    @contextmanager
    def reading(self) -> Iterator[MergedTensors]:
        """Open base and adapter to read merged tensors."""
        from safetensors import safe_open

        with (
            self.base.reading() as base,
            safe_open(self.adapter / WEIGHTS_FILE, framework="pt") as lora,
        ):
            yield MergedTensors(base, lora, self.pairs)


@dataclass(frozen=True)
class MergedTensors:
    """Tensors of the merged model, made when they are asked for."""

    base: Reader
    lora: Any
    pairs: dict[str, Pair]

    def read(self, name: str) -> torch.Tensor:
        """The tensor in float32 where the adapter changes it, else as the base stores it."""
        weight = self.base.read(name)
        pair = self.pairs.get(name)
        if pair is None:
            return weight
        half_a, half_b = self.lora.get_tensor(pair.a).float(), self.lora.get_tensor(pair.b).float()
        return weight.float().addmm_(half_b, half_a, alpha=pair.scale)


def _pairs(base: Checkpoint, config: LoraConfig, tensors: tuple[LoraTensor, ...]) -> dict[str, Pair]:
    halves = {(tensor.module, tensor.half): tensor.info.name for tensor in tensors}
    names = {_bare(name): name for name in base.tensors}
    pairs = {}
    for module in {module for module, _ in halves}:
        name = f"{module}.weight" if f"{module}.weight" in base.tensors else names[_bare(f"{module}.weight")]
        pairs[name] = Pair(halves[module, "A"], halves[module, "B"], _scale(config, module))
    return pairs


def _bare(name: str) -> str:
    """The path without the wrappers that multimodal models put around their language model."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _scale(config: LoraConfig, module: str) -> float:
    rank = config.rank_of(module)
    return config.alpha_of(module) / (math.sqrt(rank) if config.use_rslora else rank)

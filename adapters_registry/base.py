"""What the registry knows of a base model: enough to tell whether an adapter fits it, and nothing that needs torch."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from adapters_registry.errors import AdapterInvalid, SourceError
from adapters_registry.weights import TensorInfo, read_header

Shape = tuple[int, int]
"""(out, in) of a linear layer; 0 stands for a size that packed weights do not tell"""

EMBEDDINGS = frozenset({"embed_tokens", "lm_head", "wte", "word_embeddings", "embed_out"})
INDEX = "model.safetensors.index.json"
WRAPPERS = frozenset({"model", "language_model", "text_model"})


@dataclass(frozen=True, slots=True)
class BaseModelSpec:
    """A base model as adapters must match it.

    `aliases` are further names under which adapters may record the base (hub id, folder, the user's own).
    `module_shapes` maps full Hugging Face module paths (`model.layers.0.self_attn.q_proj`) to (out, in); it is empty
    for an engine that runs elsewhere, and then adapters are checked for self-consistency only. `per_module_scaling`
    tells whether the engine honours `rank_pattern` and `alpha_pattern`; one that does not ignores them in silence
    (vLLM 0.32 does honour them). `nested` tells that the language model is part of a larger one, whose layers
    checkpoints and adapters name in several ways.
    """

    name: str
    aliases: tuple[str, ...] = ()
    module_shapes: Mapping[str, Shape] = field(default_factory=lambda: MappingProxyType({}))
    max_lora_rank: int = 64
    per_module_scaling: bool = False
    nested: bool = False

    @classmethod
    def from_folder(
        cls,
        path: Path,
        name: str,
        aliases: Iterable[str] = (),
        max_lora_rank: int = 64,
        *,
        per_module_scaling: bool = False,
    ) -> BaseModelSpec:
        """Read config.json and the headers (never the weights) of the safetensors files in `path`.

        Raises SourceError when the folder is not a model in safetensors format.
        """
        config = _read_json(path / "config.json")
        tensors: dict[str, TensorInfo] = {}
        for shard in _shards(path):
            tensors |= _header(shard)
        return cls(
            name=name,
            aliases=tuple(dict.fromkeys([*aliases, str(path.absolute())])),
            module_shapes=MappingProxyType(_linear_shapes(tensors)),
            max_lora_rank=max_lora_rank,
            per_module_scaling=per_module_scaling,
            nested=isinstance(config.get("text_config"), dict),
        )

    def shape_of(self, module: str) -> Shape | None:
        """(out, in) of `module`, or None when the base has no such linear layer.

        Multimodal models have the same layer with and without `language_model` in its path; vLLM understands both. Of a
        plain model it knows one path, and an adapter with another would be loaded and then never applied.
        """
        if module in self.module_shapes:
            return self.module_shapes[module]
        if not self.nested or module.partition(".")[0] not in WRAPPERS:
            return None
        wanted = _unwrapped(module)
        return next((shape for path, shape in self.module_shapes.items() if _unwrapped(path) == wanted), None)

    def answers_to(self, recorded: str) -> bool:
        """Whether `recorded`, an adapter's `base_model_name_or_path`, means this base (case does not matter)."""
        mine = set().union(*map(_spellings, (self.name, *self.aliases)))
        return not mine.isdisjoint(_spellings(recorded))


def _unwrapped(module: str) -> str:
    return ".".join(part for part in module.split(".") if part not in WRAPPERS)


def _spellings(name: str) -> set[str]:
    """The full name and its last component; a path into the Hub's cache also gives the repository it belongs to."""
    name = name.strip().replace("\\", "/").rstrip("/").lower()
    found = {name, name.rsplit("/", 1)[-1]}
    for part in name.split("/"):
        if part.startswith("models--"):
            found |= {part.removeprefix("models--").replace("--", "/"), part.rsplit("--", 1)[-1]}
    return found - {""}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise SourceError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise SourceError(f"{path} is not a JSON object")
    return value


def _shards(path: Path) -> list[Path]:
    if (path / INDEX).is_file():
        files = {str(file) for file in dict(_read_json(path / INDEX).get("weight_map", {})).values()}
        if any("/" in file or file.startswith(".") for file in files):
            raise SourceError(f"{path / INDEX} names files outside its folder")
        return [path / file for file in sorted(files)]
    shards = sorted(path.glob("*.safetensors"))
    if not shards:
        raise SourceError(f"{path} holds no safetensors weights")
    return shards


def _header(shard: Path) -> dict[str, TensorInfo]:
    try:
        with shard.open("rb") as file:
            return {tensor.name: tensor for tensor in read_header(file).tensors}
    except OSError as error:
        raise SourceError(f"cannot read {shard}: {error.strerror}") from error
    except AdapterInvalid as error:
        raise SourceError(f"{shard}: {error.message}") from error


def _linear_shapes(tensors: Mapping[str, TensorInfo]) -> dict[str, Shape]:
    shapes: dict[str, Shape] = {}
    for name, tensor in tensors.items():
        module, _, kind = name.rpartition(".")
        if module.rsplit(".", 1)[-1] in EMBEDDINGS or len(tensor.shape) != 2:
            continue
        if kind == "weight":
            # bitsandbytes packs a matrix into one byte column, so that its shape tells nothing
            packed = tensor.dtype == "U8"
            shapes[module] = (0, 0) if packed else (tensor.shape[0], tensor.shape[1])
        elif kind == "weight_packed":
            shapes[module] = (tensor.shape[0], 0)
        elif kind == "qweight":
            shapes[module] = _quantised_shape(module, tensor, tensors)
    return shapes


def _quantised_shape(module: str, packed: TensorInfo, tensors: Mapping[str, TensorInfo]) -> Shape:
    """AWQ packs along the outputs, GPTQ along the inputs (and then lists the group of each input in `g_idx`)."""
    scales, groups = tensors.get(f"{module}.scales"), tensors.get(f"{module}.g_idx")
    out = scales.shape[-1] if scales else 0
    if groups:
        return out, groups.shape[0]
    return out, packed.shape[0] if out != packed.shape[1] else 0

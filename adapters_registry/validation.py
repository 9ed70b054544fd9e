"""Whether an adapter can be served on a base: names, bases, modules, ranks and shapes. One clear reason per refusal.

vLLM looks modules up by name and skips, without a word, those whose path its model does not have; ranks and scalings
come from the config, not from the tensors. Hence nothing is left to the engine that can be told from the headers.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeVar

from adapters_registry.base import EMBEDDINGS, BaseModelSpec
from adapters_registry.errors import AdapterInvalid
from adapters_registry.peft_config import LoraConfig, refuse
from adapters_registry.weights import TensorInfo, WeightsHeader
from configs.settings import NAME_PATTERN

Number = TypeVar("Number", int, int | float)

NAME = re.compile(NAME_PATTERN)
PREFIX = "base_model.model."
SERVED_DTYPES = frozenset({"F32", "F16", "BF16"})
RESERVED_NAMES = frozenset({"auto", "none"})
"""`model: auto` asks for routing, and `none` is what responses tell when no adapter answered"""


@dataclass(frozen=True, slots=True)
class LoraTensor:
    """One half of a LoRA pair: `lora_A` is (rank, in), `lora_B` is (out, rank)."""

    module: str
    half: Literal["A", "B"]
    info: TensorInfo

    @property
    def canonical_name(self) -> str:
        """The name that PEFT and vLLM both read."""
        return f"{PREFIX}{self.module}.lora_{self.half}.weight"


@dataclass(frozen=True, slots=True)
class CheckedAdapter:
    """An adapter whose headers passed; its numbers are checked while they are copied."""

    tensors: tuple[LoraTensor, ...]
    rank: int
    target_modules: tuple[str, ...]
    config: bytes
    """canonical adapter_config.json"""


def check_name(name: str, param: str = "name") -> str:
    """Return `name` if it may name an adapter or an agent. Raises AdapterInvalid (`bad_name`)."""
    if not isinstance(name, str) or NAME.fullmatch(name) is None or ".." in name or name.endswith("\n"):
        raise AdapterInvalid(
            f"{param} {str(name)[:80]!r} is not allowed: use 1 to 64 of a-z, 0-9, '.', '_' and '-', "
            "beginning with a letter or digit, without '..'",
            param=param,
            code="bad_name",
        )
    if name in RESERVED_NAMES:
        raise AdapterInvalid(f"{param} {name!r} is reserved", param=param, code="bad_name")
    return name


def choose_base(
    bases: Mapping[str, BaseModelSpec], wanted: str | None, config: LoraConfig, header: WeightsHeader
) -> BaseModelSpec:
    """The base that the adapter is for: the `wanted` one, the one it records, or the one that its shapes fit.

    Raises AdapterInvalid: `unknown_base`, `wrong_base` or `ambiguous_base`.
    """
    if wanted is not None and wanted not in bases:
        known = ", ".join(sorted(bases)) or "none"
        raise AdapterInvalid(f"no base model {wanted[:80]!r}; served are: {known}", param="base", code="unknown_base")
    if not bases:
        raise AdapterInvalid("no engine here takes adapters", param="base", code="unknown_base")
    candidates = [bases[wanted]] if wanted is not None else list(bases.values())
    if config.base_model:
        fitting = [spec for spec in candidates if spec.answers_to(config.base_model)]
    else:
        # without a name only the shapes can tell, so a base whose shapes are not known cannot be meant
        fitting = [spec for spec in candidates if spec.module_shapes and _fits(spec, header)]
        if not fitting and len(candidates) == 1 and candidates[0].module_shapes:
            return candidates[0]  # the check of the shapes gives the better reason
    if not fitting:
        recorded = repr(config.base_model[:200]) if config.base_model else "no base model"
        served = ", ".join(repr(spec.name) for spec in candidates)
        refuse("wrong_base", f"the adapter records {recorded} as its base; served here: {served}")
    if len(fitting) > 1:
        names = ", ".join(spec.name for spec in fitting)
        raise AdapterInvalid(f"the adapter fits several bases ({names}); name one", param="base", code="ambiguous_base")
    return fitting[0]


def check_adapter(config: LoraConfig, header: WeightsHeader, base: BaseModelSpec) -> CheckedAdapter:
    """Check everything that config and headers tell. Raises AdapterInvalid with a stable code."""
    pairs = _pairs(header)
    ranks: dict[str, int] = {}
    alphas: dict[str, int | float] = {}
    for module, (half_a, half_b) in pairs.items():
        ranks[module] = _check_rank(module, config.rank_of(module), half_a, half_b, base)
        alphas[module] = config.alpha_of(module)
        _check_shape(module, half_a, half_b, base)
    tensors = tuple(half for pair in pairs.values() for half in pair)
    targets = _target_modules(pairs)
    canonical = _canonical_config(config, ranks, alphas, targets, base)
    return CheckedAdapter(tensors, max(ranks.values()), targets, canonical)


def parse_tensor(info: TensorInfo) -> LoraTensor:
    """Split a tensor's name into module and half, or refuse what is not LoRA on a linear layer."""
    path = info.name.removeprefix(PREFIX)
    parts = path.split(".")
    if not EMBEDDINGS.isdisjoint(parts):
        if any(part.startswith("lora_") for part in parts):
            refuse("embedding_lora", f"{path[:200]!r}: LoRA on embeddings or the output head cannot be served")
        refuse("resized_embeddings", f"the adapter carries embedding weights ({path[:200]!r}); resized or trained "
               "embeddings cannot be served")  # fmt: skip
    if len(parts) < 3 or parts[-2] not in ("lora_A", "lora_B") or parts[-1] != "weight" or "" in parts:
        if "lora_magnitude_vector" in parts:
            refuse("dora", f"the adapter carries DoRA magnitudes ({path[:200]!r}), which the engine cannot serve")
        if parts[-1] == "bias":
            refuse("bias", f"the adapter carries a bias ({path[:200]!r}), which the engine cannot serve")
        refuse("unknown_tensor", f"the adapter carries {path[:200]!r}, which is neither lora_A nor lora_B")
    if info.dtype not in SERVED_DTYPES:
        refuse("dtype_unsupported", f"{path[:200]!r} is {info.dtype}; only F32, F16 and BF16 are served")
    if len(info.shape) != 2 or 0 in info.shape:
        refuse("wrong_shape", f"{path[:200]!r} has shape {list(info.shape)[:8]}; two dimensions above zero are needed")
    return LoraTensor(".".join(parts[:-2]), "A" if parts[-2] == "lora_A" else "B", info)


def _pairs(header: WeightsHeader) -> dict[str, tuple[LoraTensor, LoraTensor]]:
    halves: dict[tuple[str, str], LoraTensor] = {}
    for info in header.tensors:
        tensor = parse_tensor(info)
        if (tensor.module, tensor.half) in halves:
            refuse("unknown_tensor", f"{tensor.canonical_name[:200]!r} is there twice, with and without its prefix")
        halves[tensor.module, tensor.half] = tensor
    if not halves:
        refuse("no_weights", "the adapter holds no LoRA weights")
    modules = sorted({module for module, _ in halves})
    for module in modules:
        for half in ("A", "B"):
            if (module, half) not in halves:
                refuse("incomplete_pair", f"module {module[:200]!r} has no lora_{half}")
    return {module: (halves[module, "A"], halves[module, "B"]) for module in modules}


def _check_rank(module: str, rank: int, half_a: LoraTensor, half_b: LoraTensor, base: BaseModelSpec) -> int:
    if rank > base.max_lora_rank:
        refuse("rank_too_large", f"rank {rank} is above the engine's max_lora_rank of {base.max_lora_rank}")
    if half_a.info.shape[0] != rank or half_b.info.shape[1] != rank:
        refuse(
            "rank_mismatch",
            f"module {module[:200]!r} has lora_A {list(half_a.info.shape)} and lora_B {list(half_b.info.shape)}, "
            f"but the config says rank {rank}",
        )
    return rank


def _check_shape(module: str, half_a: LoraTensor, half_b: LoraTensor, base: BaseModelSpec) -> None:
    if not base.module_shapes:
        return
    shape = base.shape_of(module)
    if shape is None:
        refuse("unknown_module", f"base {base.name!r} has no linear layer {module[:200]!r}")
    found = (half_b.info.shape[0], half_a.info.shape[1])
    if any(size not in (0, got) for size, got in zip(shape, found, strict=True)):
        refuse("wrong_shape", f"module {module[:200]!r} maps {found[1]} to {found[0]}, but in base {base.name!r} it "
               f"maps {shape[1]} to {shape[0]}")  # fmt: skip


def _fits(base: BaseModelSpec, header: WeightsHeader) -> bool:
    try:
        for module, (half_a, half_b) in _pairs(header).items():
            _check_shape(module, half_a, half_b, base)
    except AdapterInvalid:
        return False
    return True


def _target_modules(modules: Iterable[str]) -> tuple[str, ...]:
    """Suffixes when every kind of module is adapted in the same layers, else full paths: both as PEFT matches them."""
    layers: dict[str, set[str]] = {}
    for module in modules:
        kind = re.sub(r"\.\d+(?=\.|$)", ".N", module)
        layers.setdefault(kind, set()).add(".".join(re.findall(r"\.(\d+)(?=\.|$)", module)))
    same_layers = len({frozenset(found) for found in layers.values()}) == 1
    suffixes = [kind.rsplit(".", 1)[-1] for kind in layers]
    if same_layers and len(set(suffixes)) == len(suffixes) and "N" not in suffixes:
        return tuple(sorted(suffixes))
    return tuple(sorted(modules))


def _usual(values: Iterable[Number]) -> Number:
    """The most frequent value, of several the smallest."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], value))


def _canonical_config(
    config: LoraConfig,
    ranks: Mapping[str, int],
    alphas: Mapping[str, int | float],
    targets: tuple[str, ...],
    base: BaseModelSpec,
) -> bytes:
    """The same bytes for every spelling of the same adapter.

    Patterns become full paths, or vanish where they say nothing.
    """
    # not those of the config: a rank that no module has may be above what the engine allows
    rank, alpha = _usual(ranks.values()), _usual(alphas.values())
    rank_pattern = {module: value for module, value in ranks.items() if value != rank}
    alpha_pattern = {module: value for module, value in alphas.items() if value != alpha}
    if (rank_pattern or alpha_pattern) and not base.per_module_scaling:
        refuse("patterns_unsupported", "the adapter has ranks or alphas that differ between modules (rank_pattern, "
               f"alpha_pattern), which the engine of base {base.name!r} would ignore")  # fmt: skip
    fields = {
        "alpha_pattern": alpha_pattern,
        "bias": "none",
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": rank_pattern,
        "target_modules": list(targets),
        "task_type": "CAUSAL_LM",
        "use_rslora": config.use_rslora,
    }
    return json.dumps(fields, sort_keys=True, indent=2, ensure_ascii=True).encode() + b"\n"

"""Adapters and bases made of plain bytes, so that tests can also make those that no library would write."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

HIDDEN, INNER, LAYERS, VOCAB = 16, 24, 2, 64
PREFIX = "base_model.model."
LINEARS = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.v_proj": (HIDDEN // 2, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (INNER, HIDDEN),
    "mlp.up_proj": (INNER, HIDDEN),
    "mlp.down_proj": (HIDDEN, INNER),
}
MODULES = {f"model.layers.{layer}.{name}": shape for layer in range(LAYERS) for name, shape in LINEARS.items()}
ITEM = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8, "I8": 1, "U8": 1, "I32": 4}

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]
"""name -> dtype, shape, bytes"""


def save_safetensors(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> None:
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values()))


def numbers(seed: int, dtype: str, shape: tuple[int, ...]) -> bytes:
    values = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    if dtype == "F32":
        return values.tobytes()
    if dtype == "F16":
        return values.astype(np.float16).tobytes()
    if dtype == "BF16":
        return (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    return bytes(int(np.prod(shape)) * ITEM[dtype])


def lora_tensors(
    seed: int = 0,
    rank: int = 4,
    modules: tuple[str, ...] = ("self_attn.q_proj", "self_attn.v_proj"),
    dtype: str = "F32",
) -> Tensors:
    tensors: Tensors = {}
    for index, (module, (out, inside)) in enumerate(MODULES.items()):
        if module.endswith(modules):
            for half, shape in (("A", (rank, inside)), ("B", (out, rank))):
                data = numbers(seed * 1000 + 2 * index + (half == "B"), dtype, shape)
                tensors[f"{PREFIX}{module}.lora_{half}.weight"] = (dtype, shape, data)
    return tensors


def peft_config(**changes: Any) -> dict[str, Any]:
    """What PEFT writes, shortened to what matters and a few fields that do not."""
    config = {
        "alpha_pattern": {},
        "auto_mapping": None,
        "base_model_name_or_path": "acme/Tiny-Base",
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "layer_replication": None,
        "lora_alpha": 8,
        "lora_dropout": 0.05,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": 4,
        "rank_pattern": {},
        "target_modules": ["v_proj", "q_proj"],
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }
    return config | changes


def write_adapter(
    folder: Path,
    seed: int = 0,
    *,
    change: Callable[[Tensors], None] | None = None,
    tensors: Tensors | None = None,
    **config: Any,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rank = config.get("r", 4)
    made = lora_tensors(seed, rank=rank if type(rank) is int else 4) if tensors is None else tensors
    if change is not None:
        change(made)
    save_safetensors(folder / "adapter_model.safetensors", made, {"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps(peft_config(**config)))
    return folder


def write_base(folder: Path, *, sharded: bool = False) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen2", "vocab_size": VOCAB}))
    tensors: Tensors = {"model.embed_tokens.weight": ("BF16", (VOCAB, HIDDEN), bytes(VOCAB * HIDDEN * 2))}
    tensors["model.norm.weight"] = ("BF16", (HIDDEN,), bytes(HIDDEN * 2))
    for module, (out, inside) in MODULES.items():
        tensors[f"{module}.weight"] = ("BF16", (out, inside), bytes(out * inside * 2))
    if not sharded:
        save_safetensors(folder / "model.safetensors", tensors)
        return folder
    names = sorted(tensors)
    shards = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for shard, part in shards.items():
        save_safetensors(folder / shard, {name: tensors[name] for name in part})
    weight_map = {name: shard for shard, part in shards.items() for name in part}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder

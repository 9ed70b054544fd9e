"""Further adapters for load tests and benches, made with numpy alone: no torch, no training.

`make_variant` shakes a trained adapter, `make_random` writes one from nothing. Both give valid PEFT folders whose
greedy answers differ from seed to seed; the answers mean nothing.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from configs.embedded import BASE_NAME

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Weights = dict[str, NDArray[np.float32]]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
CONFIG_OF_BASE = "config.json"
USUAL_DEVIATION = 0.02
"""of the weights that transformers starts from"""


def make_variant(source_adapter_folder: Path, out_folder: Path, seed: int, scale: float = 3.0) -> Path:
    """Copy an adapter with noise on each B matrix: normal, `scale` times the matrix's root mean square.

    Below a scale of about 2 most prompts are still answered as the source answers them.

    Returns `out_folder`, which must not exist yet (FileExistsError). The same seed gives the same bytes.
    """
    import numpy as np
    from safetensors.numpy import load_file

    weights = load_file(source_adapter_folder / WEIGHTS)
    rng = np.random.default_rng(seed)
    for name in sorted(weights):
        if ".lora_B." in name:
            matrix = weights[name]
            size = float(np.sqrt(np.mean(np.square(matrix, dtype=np.float64)))) * scale
            weights[name] = (matrix + rng.standard_normal(matrix.shape) * size).astype(matrix.dtype)
    out_folder.mkdir(parents=True)
    shutil.copyfile(source_adapter_folder / CONFIG, out_folder / CONFIG)
    _write(weights, out_folder)
    return out_folder


def make_random(base_folder: Path, out_folder: Path, rank: int, seed: int, scale: float = 4.0) -> Path:
    """Write an adapter of `rank` on all linear layers of the Qwen2 or Llama model in `base_folder`, random weights.

    Only the base's `config.json` is read. The change of a weight is, at any rank, about `scale` times as large as the
    weight usually is. At a scale of 1 half of the seeds still answer as the base does. Returns `out_folder`, which must
    not exist yet (FileExistsError). Raises ValueError for a rank below 1.
    """
    import numpy as np

    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    shapes = _linear_shapes(json.loads((base_folder / CONFIG_OF_BASE).read_text(encoding="utf-8")))
    rng = np.random.default_rng(seed)
    deviation = (scale * USUAL_DEVIATION / rank**0.5) ** 0.5
    weights: Weights = {}
    for layer, (wide_out, wide_in) in shapes.items():
        for matrix, shape in (("lora_A", (rank, wide_in)), ("lora_B", (wide_out, rank))):
            values = rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)
            weights[f"base_model.model.{layer}.{matrix}.weight"] = values
    out_folder.mkdir(parents=True)
    config = {
        "base_model_name_or_path": BASE_NAME,
        "bias": "none",
        "inference_mode": True,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": sorted({layer.rsplit(".", 1)[-1] for layer in shapes}),
        "task_type": "CAUSAL_LM",
    }
    (out_folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    _write(weights, out_folder)
    return out_folder


def _linear_shapes(config: dict[str, int]) -> dict[str, tuple[int, int]]:
    """(out, in) of each linear layer, by module name."""
    hidden, middle, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    keys = config.get("num_key_value_heads", heads) * head
    of_one_layer = {
        "self_attn.q_proj": (heads * head, hidden),
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "self_attn.o_proj": (hidden, heads * head),
        "mlp.gate_proj": (middle, hidden),
        "mlp.up_proj": (middle, hidden),
        "mlp.down_proj": (hidden, middle),
    }
    return {
        f"model.layers.{index}.{name}": shape
        for index in range(config["num_hidden_layers"])
        for name, shape in of_one_layer.items()
    }


def _write(weights: Weights, folder: Path) -> None:
    from safetensors.numpy import save_file

    save_file({name: weights[name] for name in sorted(weights)}, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)

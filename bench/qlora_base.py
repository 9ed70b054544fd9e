"""Random bases in the shape of Qwen2.5: what the QLoRA benchmark quantises and trains."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from configs.embedded import BASE

SHAPES: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "tie_word_embeddings": False,
    },
    "1.5b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "0.5b": {
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
        "tie_word_embeddings": True,
    },
    "tiny": {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 4096,
        "tie_word_embeddings": False,
    },
}
LENGTH = 2048
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TOKENIZER = ("tokenizer.json", "tokenizer_config.json")


def write_base(name: str, folder: Path, *, layers: int | None = None) -> Path:
    """A base with random weights in 16 bits; a tokenizer lies beside it, since trainers ask for one."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen2Config

    place = folder / (name if layers is None else f"{name}-{layers}")
    if (place / "config.json").exists():
        return place
    shape = SHAPES[name] | ({} if layers is None else {"num_hidden_layers": layers})
    config = Qwen2Config(**shape, max_position_embeddings=32768, rms_norm_eps=1e-6)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(place)
    for file in TOKENIZER:
        shutil.copy(BASE / file, place / file)
    return place


def load(folder: Path) -> Any:
    """A base on the GPU in NF4 with double quantisation, 16-bit arithmetic, PyTorch's own attention."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantisation = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        device_map={"": 0 if torch.cuda.is_available() else "cpu"},
        attn_implementation="sdpa",
        quantization_config=quantisation,
    )


def lora(dropout: float = 0.0) -> Any:
    """Rank 16 on all linears."""
    from peft import LoraConfig

    return LoraConfig(r=16, lora_alpha=32, lora_dropout=dropout, target_modules=MODULES, task_type="CAUSAL_LM")

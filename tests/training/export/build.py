"""Small models with random weights, saved as real checkpoints, and adapters on them saved by peft."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from configs import embedded

SHAPE = {
    "vocab_size": 3072,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "bos_token_id": None,
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def save_base(folder: Path, *, kind: str = "llama", max_shard_size: str = "5GB", **config: Any) -> Path:
    torch.manual_seed(0)
    if kind == "llama":
        model: Any = LlamaForCausalLM(LlamaConfig(**SHAPE | config))
    else:
        model = Qwen2ForCausalLM(Qwen2Config(**SHAPE | config))
    with torch.no_grad():  # biases begin at zero, and then would test nothing
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size=max_shard_size)
    for name in TOKENIZER:
        shutil.copyfile(embedded.BASE / name, folder / name)
    return folder


def save_adapter(folder: Path, base: Path, **config: Any) -> Path:
    """An adapter whose B is not zero, so that it changes what the model says."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    chosen = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "k_proj", "down_proj"]} | config
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(task_type="CAUSAL_LM", **chosen))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(str(folder))
    return folder


def edit_json(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))

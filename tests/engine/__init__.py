"""Tests against the real vLLM, and what they share: adapters to load, requests to send."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from adapters_registry.model import AdapterVersion, State
from configs import embedded
from serving.engine.base import Engine

MakeAdapter = Callable[..., AdapterVersion]


def write_adapter(folder: Path, *, seed: int = 0, rank: int = 8, width: int | None = None, scale: float = 0.02) -> Path:
    """A random PEFT folder for the embedded base, adapting the attention's output of every layer."""
    config = json.loads((embedded.BASE / "config.json").read_text())
    hidden = width or config["hidden_size"]
    rng = np.random.default_rng(seed)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        stem = f"base_model.model.model.layers.{layer}.self_attn.o_proj"
        tensors[f"{stem}.lora_A.weight"] = rng.normal(0, scale, (rank, hidden)).astype(np.float32)
        tensors[f"{stem}.lora_B.weight"] = rng.normal(0, scale, (hidden, rank)).astype(np.float32)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    peft = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": embedded.BASE_NAME,
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["o_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(peft))
    return folder


def adapter_at(folder: Path, number: int, *, rank: int = 8) -> AdapterVersion:
    """The version that the registry would tell for `folder`."""
    return AdapterVersion(
        name=f"adapter-{number}",
        digest=f"{number:08x}" + "ab" * 28,
        agent="legal",
        base=embedded.BASE_NAME,
        rank=rank,
        path=folder,
        size_bytes=sum(file.stat().st_size for file in folder.iterdir()) if folder.is_dir() else 0,
        state=State.VALIDATED,
        created_at=datetime.now(UTC),
        source="test",
    )


def chat_body(model: str, text: str = "Summarise the clause.", **fields: Any) -> bytes:
    """A chat request."""
    content = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 8}
    return json.dumps(content | fields).encode()


async def ask(engine: Engine, model: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    """Status and content of one chat request."""
    async with engine.open("/v1/chat/completions", chat_body(model, **fields)) as response:
        return response.status, json.loads(await response.read())

"""Built-in shapes: Hub ids of well-known models and what their published config.json says about their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

Config = Mapping[str, Any]


def _config(kind: str, sizes: tuple[int, int, int, int, int, int], **more: Any) -> Config:
    keys = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
    )
    return {"model_type": kind, "tie_word_embeddings": False, **dict(zip(keys, sizes, strict=True)), **more}


NAMED_CONFIGS: Mapping[str, tuple[str, Config]] = MappingProxyType(
    {
        "0.5b": (
            "Qwen/Qwen2.5-0.5B-Instruct",
            _config("qwen2", (151_936, 896, 4_864, 24, 14, 2), tie_word_embeddings=True),
        ),
        "1.5b": (
            "Qwen/Qwen2.5-1.5B-Instruct",
            _config("qwen2", (151_936, 1_536, 8_960, 28, 12, 2), tie_word_embeddings=True),
        ),
        "3b": (
            "Qwen/Qwen2.5-3B-Instruct",
            _config("qwen2", (151_936, 2_048, 11_008, 36, 16, 2), tie_word_embeddings=True),
        ),
        "7b": ("Qwen/Qwen2.5-7B-Instruct", _config("qwen2", (152_064, 3_584, 18_944, 28, 28, 4))),
        "14b": ("Qwen/Qwen2.5-14B-Instruct", _config("qwen2", (152_064, 5_120, 13_824, 48, 40, 8))),
        "9b": (
            "google/gemma-2-9b-it",
            _config("gemma2", (256_000, 3_584, 14_336, 42, 16, 8), head_dim=256, tie_word_embeddings=True),
        ),
        "yi-9b": ("01-ai/Yi-1.5-9B-Chat", _config("llama", (64_000, 4_096, 11_008, 48, 32, 4))),
        "llama-8b": ("meta-llama/Llama-3.1-8B-Instruct", _config("llama", (128_256, 4_096, 14_336, 32, 32, 8))),
        "mistral-7b": ("mistralai/Mistral-7B-v0.1", _config("mistral", (32_000, 4_096, 14_336, 32, 32, 8))),
        "qwen3-8b": ("Qwen/Qwen3-8B", _config("qwen3", (151_936, 4_096, 12_288, 36, 32, 8), head_dim=128)),
    }
)

"""Models that are a shape and no weights: what an engine with `load_format: dummy` needs of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from configs.embedded import BASE

QWEN = {"num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064, "tie_word_embeddings": False}
SHAPES: dict[str, dict[str, Any]] = {
    "7b": QWEN | {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28},
    "tiny": QWEN
    | {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    },
}
"""Qwen2.5-7B, and one of its kind that starts in seconds"""
POSITIONS = 8192


def write_shape(name: str, folder: Path) -> Path:
    """The config of a shape, and a tokenizer that gives each token a text of its own. Returns `folder`."""
    from tokenizers import Tokenizer, models

    folder.mkdir(parents=True)
    config = json.loads((BASE / "config.json").read_text(encoding="utf-8"))
    layers = {"layer_types": ["full_attention"] * SHAPES[name]["num_hidden_layers"]}
    (folder / "config.json").write_text(
        json.dumps(config | SHAPES[name] | layers | {"max_position_embeddings": POSITIONS}), encoding="utf-8"
    )
    vocabulary = {f"t{number} ": number for number in range(SHAPES[name]["vocab_size"])}
    Tokenizer(models.WordLevel(vocabulary, unk_token="t0 ")).save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "t0 ", "eos_token": "t2 "}),
        encoding="utf-8",
    )
    return folder

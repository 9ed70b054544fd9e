"""A decoder's sizes from its Hugging Face config, and exact parameter counts. No weights, no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from configs.embedded import BASE, BASE_NAME
from training.planner.errors import ShapeError
from training.planner.named import NAMED_CONFIGS

CONFIG = "config.json"
EMBEDDED = "embedded"

_LANGUAGE_PARTS = ("text_config", "llm_config")
_TIED_BY_DEFAULT = frozenset({"gemma", "gemma2", "gemma3", "gemma3_text"})
_QKV_BIAS = frozenset({"qwen2"})
_QK_NORM = frozenset({"qwen3", "gemma3", "gemma3_text"})
_FOUR_NORMS = frozenset({"gemma2", "gemma3", "gemma3_text"})
_HEAD_DIM = {"gemma": 256, "gemma2": 256, "gemma3": 256, "gemma3_text": 256, "qwen3": 128}
"""head sizes that `transformers` fills in when a config leaves them out; the others divide the hidden size"""
KNOWN = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "gemma3_text"})


@dataclass(frozen=True, slots=True)
class Linear:
    """One linear layer: sizes (out, in)."""

    name: str
    outputs: int
    inputs: int
    bias: bool = False

    @property
    def weights(self) -> int:
        """Elements of its matrix."""
        return self.outputs * self.inputs

    @property
    def parameters(self) -> int:
        """Elements of matrix and bias."""
        return self.weights + (self.outputs if self.bias else 0)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A dense decoder of the Llama family (RMSNorm, rotary positions, grouped attention, gated MLP)."""

    name: str
    kind: str
    vocabulary: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    tied: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    norms_per_layer: int = 2

    @property
    def q_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers of one block, which LoRA adapts and NF4 quantises."""
        hidden, inner = self.hidden, self.intermediate
        return (
            Linear("q_proj", self.q_width, hidden, self.qkv_bias),
            Linear("k_proj", self.kv_width, hidden, self.qkv_bias),
            Linear("v_proj", self.kv_width, hidden, self.qkv_bias),
            Linear("o_proj", hidden, self.q_width, self.o_bias),
            Linear("gate_proj", inner, hidden, self.mlp_bias),
            Linear("up_proj", inner, hidden, self.mlp_bias),
            Linear("down_proj", hidden, inner, self.mlp_bias),
        )

    @property
    def parameters(self) -> Parameters:
        """How many there are, by part."""
        attention, mlp = self.linears[:4], self.linears[4:]
        norms = self.norms_per_layer * self.hidden + (2 * self.head_dim if self.qk_norm else 0)
        table = self.vocabulary * self.hidden
        return Parameters(
            embeddings=table,
            lm_head=0 if self.tied else table,
            attention=self.layers * sum(linear.parameters for linear in attention),
            mlp=self.layers * sum(linear.parameters for linear in mlp),
            norms=self.layers * norms + self.hidden,
            linear_weights=self.layers * sum(linear.weights for linear in self.linears),
        )

    def lora_parameters(self, rank: int) -> int:
        """Parameters of an adapter of `rank` on all linear layers: rank * (in + out) each (Hu et al., 2106.09685)."""
        return self.layers * sum(rank * (linear.inputs + linear.outputs) for linear in self.linears)


@dataclass(frozen=True, slots=True)
class Parameters:
    """Counts of parameters. A tied `lm_head` is the embedding and counts once, there."""

    embeddings: int
    lm_head: int
    attention: int
    mlp: int
    norms: int
    linear_weights: int
    """matrices in attention and mlp, without biases: what NF4 packs"""

    @property
    def total(self) -> int:
        """All."""
        return self.embeddings + self.lm_head + self.attention + self.mlp + self.norms

    @property
    def head_table(self) -> int:
        """The matrix that makes logits, tied or not."""
        return self.lm_head or self.embeddings


def load_shape(model: str) -> ModelShape:
    """The shape of `model`: a folder with config.json, a config file, or a built-in name (`7b`).

    Raises ShapeError with one line.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        return read_shape(path / CONFIG, path.resolve().name)
    if path.is_file():
        return read_shape(path, path.stem if path.name != CONFIG else path.resolve().parent.name)
    if model.lower() in NAMED_CONFIGS:
        hub_id, config = NAMED_CONFIGS[model.lower()]
        return shape_of(config, hub_id.rpartition("/")[2])
    if model.lower() == EMBEDDED:
        return read_shape(BASE / CONFIG, BASE_NAME)
    raise ShapeError(f"'{model}' is no folder, no config file and none of {', '.join(shape_names())}")


def base_of(model: str) -> str:
    """The base that `model` (as in `load_shape`) stands for, as the trainer loads it: a folder or a Hub id."""
    path = Path(model).expanduser()
    if path.exists():
        return str((path if path.is_dir() else path.parent).resolve())
    return str(BASE) if model.lower() == EMBEDDED else NAMED_CONFIGS[model.lower()][0]


def read_shape(file: Path, name: str) -> ModelShape:
    """The shape that a config file describes."""
    try:
        config = json.loads(file.read_bytes())
    except OSError as error:
        raise ShapeError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise ShapeError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ShapeError(f"{file} is not a JSON object")
    return shape_of(config, name)


def shape_names() -> tuple[str, ...]:
    """The built-in names."""
    return (*NAMED_CONFIGS, EMBEDDED)


def shape_of(config: Mapping[str, Any], name: str) -> ModelShape:
    """The shape that a config describes; of a multimodal one, its language model."""
    config = next((config[part] for part in _LANGUAGE_PARTS if isinstance(config.get(part), dict)), config)
    kind = config.get("model_type")
    if kind not in KNOWN:
        raise ShapeError(f"{name}: model_type {kind!r} is none of {', '.join(sorted(KNOWN))}")
    size = partial(_size, config, name)
    hidden, heads = size("hidden_size"), size("num_attention_heads")
    bias = bool(config.get("attention_bias", False))
    return ModelShape(
        name=name,
        kind=kind,
        vocabulary=size("vocab_size"),
        hidden=hidden,
        intermediate=size("intermediate_size"),
        layers=size("num_hidden_layers"),
        heads=heads,
        kv_heads=size("num_key_value_heads", heads),
        head_dim=size("head_dim", _HEAD_DIM.get(kind, hidden // heads)),
        tied=bool(config.get("tie_word_embeddings", kind in _TIED_BY_DEFAULT)),
        qkv_bias=kind in _QKV_BIAS or bias,
        o_bias=bias,
        mlp_bias=bool(config.get("mlp_bias", False)),
        qk_norm=kind in _QK_NORM,
        norms_per_layer=4 if kind in _FOUR_NORMS else 2,
    )


def _size(config: Mapping[str, Any], name: str, key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ShapeError(f"{name}: config.json has no usable {key}")
    return value

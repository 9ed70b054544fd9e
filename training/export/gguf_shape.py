"""What a GGUF file says of a model's shape, and how its tensors are named and laid out there.

Known are Qwen2 and Llama. Llama's query and key rows are reordered, because llama.cpp rotates neighbouring rows where
transformers rotates the two halves of a head; Qwen2's are not (llama.cpp gives it the other kind of rotation).
Metadata names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from training.export.errors import ExportRefused

if TYPE_CHECKING:
    import gguf
    import numpy as np
    from numpy.typing import NDArray

ARCHITECTURES = {"Qwen2ForCausalLM": "qwen2", "LlamaForCausalLM": "llama"}
ROPE_FACTORS = "rope_freqs.weight"
_PERMUTED = {"q_proj": "heads", "k_proj": "kv_heads"}


@dataclass(frozen=True)
class Shape:
    """The numbers of a config.json that a GGUF file carries. `rope` is its rope section, with `rope_theta` in it."""

    architecture: str
    layers: int
    context: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    epsilon: float
    rope: dict[str, Any]
    tied: bool

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """Read a config.json. Raises ExportRefused for what llama.cpp would compute otherwise."""
        architecture = _architecture(config)
        try:
            heads = int(config["num_attention_heads"])
            return cls(
                architecture=architecture,
                layers=int(config["num_hidden_layers"]),
                context=int(config["max_position_embeddings"]),
                hidden=int(config["hidden_size"]),
                feed_forward=int(config["intermediate_size"]),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_size=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
                vocabulary=int(config["vocab_size"]),
                epsilon=float(config["rms_norm_eps"]),
                rope=_rope(config),
                tied=bool(config.get("tie_word_embeddings")),
            )
        except KeyError as error:
            raise ExportRefused(f"the base's config.json has no {error}") from None

    def describe(self, writer: gguf.GGUFWriter) -> None:
        """Write the metadata."""
        import gguf

        writer.add_block_count(self.layers)
        writer.add_context_length(self.context)
        writer.add_embedding_length(self.hidden)
        writer.add_feed_forward_length(self.feed_forward)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_key_length(self.head_size)
        writer.add_value_length(self.head_size)
        writer.add_rope_dimension_count(self.head_size)
        writer.add_layer_norm_rms_eps(self.epsilon)
        writer.add_vocab_size(self.vocabulary)
        writer.add_rope_freq_base(float(self.rope["rope_theta"]))
        kind = self.rope["rope_type"]
        if kind in {"linear", "yarn"}:
            writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
            writer.add_rope_scaling_factor(float(self.rope["factor"]))
        if kind == "yarn":
            writer.add_rope_scaling_orig_ctx_len(
                int(self.rope.get("original_max_position_embeddings") or self.context / self.rope["factor"])
            )

    def name_of(self, name: str) -> str | None:
        """The tensor's name in the file, or None for one that is not stored. Raises ExportRefused."""
        import gguf

        if name.endswith("rotary_emb.inv_freq") or (self.tied and name == "lm_head.weight"):
            return None
        architecture = {label: each for each, label in gguf.MODEL_ARCH_NAMES.items()}[self.architecture]
        found = gguf.get_tensor_name_map(architecture, self.layers).get_name(name, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise ExportRefused(f"the base's tensor {name} has no place in a {self.architecture} GGUF file")
        return found

    def lay_out(self, name: str, tensor: NDArray[np.float32]) -> NDArray[np.float32]:
        """The tensor as llama.cpp wants its rows; `name` is the base's."""
        module = name.split(".")[-2] if "." in name else name
        if self.architecture != "llama" or module not in _PERMUTED:
            return tensor
        heads: int = getattr(self, _PERMUTED[module])
        halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
        return halves.swapaxes(1, 2).reshape(tensor.shape)

    def rope_factors(self) -> NDArray[np.float32] | None:
        """For Llama 3.1 rotary scaling, what each frequency is divided by: (head_size / 2,); else None."""
        import numpy as np

        if self.rope["rope_type"] != "llama3":
            return None
        theta, size = float(self.rope["rope_theta"]), self.head_size
        frequencies = [theta ** (-2 * index / size) for index in range(size // 2)]
        return np.array([self._slowing(2 * math.pi / frequency) for frequency in frequencies], dtype=np.float32)

    def _slowing(self, wavelength: float) -> float:
        """Long waves are slowed by `factor`, short ones not, those between by a blend (Llama 3.1)."""
        factor, context = float(self.rope["factor"]), float(self.rope["original_max_position_embeddings"])
        low, high = float(self.rope["low_freq_factor"]), float(self.rope["high_freq_factor"])
        if wavelength < context / high:
            return 1.0
        if wavelength > context / low:
            return factor
        blend = (context / wavelength - low) / (high - low)
        return 1 / ((1 - blend) / factor + blend)


def _architecture(config: dict[str, Any]) -> str:
    names = config.get("architectures") or ["none"]
    if names[0] not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ExportRefused(f"the base is a {names[0]}; GGUF files are written for {known}: export merged instead")
    if config.get("use_sliding_window"):
        raise ExportRefused("the base uses sliding-window attention, which llama.cpp ignores for its architecture")
    if config.get("mlp_bias"):
        raise ExportRefused("the base has biases in its feed-forward layers, which llama.cpp ignores")
    if (activation := config.get("hidden_act", "silu")) != "silu":
        raise ExportRefused(f"the base's activation is {activation}, and llama.cpp computes silu")
    return ARCHITECTURES[names[0]]


def _rope(config: dict[str, Any]) -> dict[str, Any]:
    """The rope section of transformers 5, or of 4 (`rope_theta` and `rope_scaling`)."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10_000.0))
    rope.setdefault("rope_type", rope.get("type", "default"))
    if rope["rope_type"] not in {"default", "linear", "yarn", "llama3"}:
        raise ExportRefused(f"the base's rotary scaling is {rope['rope_type']!r}, which the export does not know")
    return rope

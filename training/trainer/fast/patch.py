"""Puts the fast path into a PEFT model of the Qwen2/Llama family, in place, or says why it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from training.trainer.fast.layer import Attention, Call, FusedLayer, LayerFunction
from training.trainer.fast.linears import LinearGroup, Member, Workspace
from training.trainer.fast.loss import shifted, token_losses
from training.trainer.fast.pointwise import Norm
from training.trainer.fast.weights import unsupported_weight

_ARCHITECTURES = ("qwen2", "llama")
_BYTES = 2
"""of an activation in 16 bits"""


@dataclass(frozen=True, slots=True)
class Acceleration:
    """What `accelerate_model` did: `reason` says why it did nothing, None if it did; `kept` layers save all products."""

    reason: str | None
    layers: int = 0
    kept: int = 0

    @property
    def active(self) -> bool:
        """Whether the model now runs the fast path."""
        return self.reason is None


def accelerate_model(
    model: nn.Module, *, kept_layers: int = 0, host_embedding: bool = False, devices: tuple[str, ...] = ("cuda",)
) -> Acceleration:
    """Make training steps of `model`, a `PeftModel` with one LoRA adapter, faster; results agree within rounding.

    Parameters keep their names and the adapter is saved as ever. Only steps in training mode with gradients change;
    generation and evaluation run the model's own code. Gradient checkpointing is switched off, since the first
    `kept_layers` layers save `kept_bytes` a token and the others only their input. `host_embedding` moves an untied
    embedding to pinned host memory. Where the model is not one that this knows, it is left as it is.
    """
    reason = unsupported(model, devices)
    if reason is not None:
        return Acceleration(reason)
    causal = _causal(model)
    if causal.is_gradient_checkpointing:
        causal.gradient_checkpointing_disable()
    causal.config.use_cache = False
    spaces = Workspace(), Workspace()
    for index, layer in enumerate(causal.model.layers):
        _patch_layer(layer, _fused(layer, causal.config, spaces, kept=index < kept_layers))
    _patch_norm(causal.model.norm)
    _patch_loss(causal)
    if host_embedding and causal.get_input_embeddings().weight is not causal.lm_head.weight:
        _move_to_host(causal.get_input_embeddings())
    count = len(causal.model.layers)
    return Acceleration(None, count, min(kept_layers, count))


def kept_bytes(config: Any) -> int:
    """Bytes a token that a kept layer saves: input, q, k, v, attention's output, residual, gate and up."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
    return _BYTES * (2 * config.hidden_size + 2 * queries + 2 * keys + 2 * config.intermediate_size)


def unsupported(model: nn.Module, devices: tuple[str, ...] = ("cuda",)) -> str | None:
    """Why `model` cannot take the fast path; None when it can."""
    peft = getattr(model, "peft_config", None)
    causal = _causal(model)
    config = getattr(causal, "config", None)
    if not peft or config is None:
        return "not a PEFT model"
    if config.model_type not in _ARCHITECTURES:
        return f"no fast path for {config.model_type} models"
    if getattr(config, "attention_dropout", 0) or config.hidden_act != "silu":
        return "attention dropout or an activation other than silu"
    device = causal.lm_head.weight.device.type
    if device not in devices:
        return f"no fast path on {device}"
    for layer in causal.model.layers:
        for linear in (getattr(block, name) for block, name in _linears(layer)):
            reason = _unsupported_linear(linear)
            if reason is not None:
                return reason
    return None


def _unsupported_linear(linear: nn.Module) -> str | None:
    if not hasattr(linear, "lora_A"):
        return unsupported_weight(linear)
    names = linear.active_adapters
    if len(names) != 1:
        return "not one active adapter"
    if any(linear.use_dora.values()) or any(linear.lora_bias.values()):
        return "DoRA or LoRA with a bias"
    dropout = linear.lora_dropout[names[0]]
    if isinstance(dropout, nn.Dropout) and dropout.p > 0:
        return f"LoRA dropout {dropout.p}"
    return unsupported_weight(linear.get_base_layer())


def _causal(model: nn.Module) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _linears(layer: Any) -> list[tuple[nn.Module, str]]:
    attention = [(layer.self_attn, name) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    return attention + [(layer.mlp, name) for name in ("gate_proj", "up_proj", "down_proj")]


def _fused(layer: Any, config: Any, spaces: tuple[Workspace, Workspace], *, kept: bool) -> FusedLayer:
    narrow, wide = spaces
    attention, mlp = layer.self_attn, layer.mlp
    size = attention.head_dim
    return FusedLayer(
        qkv=_group((attention.q_proj, attention.k_proj, attention.v_proj), narrow),
        output=_group((attention.o_proj,), narrow),
        gate_up=_group((mlp.gate_proj, mlp.up_proj), wide),
        down=_group((mlp.down_proj,), narrow),
        before_attention=layer.input_layernorm,
        before_mlp=layer.post_attention_layernorm,
        head_size=size,
        heads=config.num_attention_heads,
        groups=config.num_key_value_heads,
        kept=kept,
    )


def _group(linears: tuple[nn.Module, ...], space: Workspace) -> LinearGroup:
    members, sizes = [], []
    for linear in linears:
        base = linear.get_base_layer() if hasattr(linear, "lora_A") else linear
        sizes.append((base.out_features, base.in_features))
        if hasattr(linear, "lora_A"):
            name = linear.active_adapters[0]
            members.append(
                Member(base, linear.lora_A[name].weight, linear.lora_B[name].weight, float(linear.scaling[name]))
            )
        else:
            members.append(Member(base, None, None, 0.0))
    return LinearGroup(members, sizes, space)


def _patch_layer(layer: Any, fused: FusedLayer) -> None:
    plain = layer.forward

    def forward(
        self: Any,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = False,
        position_embeddings: tuple[Tensor, Tensor] | None = None,
        **options: Any,
    ) -> Tensor:
        usable = (
            self.training and torch.is_grad_enabled() and past_key_values is None and position_embeddings is not None
        )
        if not usable or _disabled(self):
            return plain(  # type: ignore[no-any-return]
                hidden_states,
                attention_mask=attention_mask,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                position_embeddings=position_embeddings,
                **options,
            )
        cos, sin = (table.reshape(-1, table.shape[-1]) for table in position_embeddings)  # type: ignore[union-attr]
        attend = _attention(self.self_attn, attention_mask, {"position_ids": position_ids, **options})
        return LayerFunction.apply(hidden_states, fused, Call(cos, sin, attend), *fused.parameters)  # type: ignore[no-any-return, no-untyped-call]

    layer.forward = MethodType(forward, layer)


def _attention(module: Any, mask: Tensor | None, options: dict[str, Any]) -> Any:
    """The model's own choice of attention (`sdpa`, `flash_attention_2`, ...), so that masks and packing stay its own."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
    from transformers.models.qwen2.modeling_qwen2 import eager_attention_forward

    interface = ALL_ATTENTION_FUNCTIONS.get_interface(module.config._attn_implementation, eager_attention_forward)
    window = getattr(module, "sliding_window", None)

    def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, _ = interface(
            module, query, key, value, mask, dropout=0.0, scaling=module.scaling, sliding_window=window, **options
        )
        return out  # type: ignore[no-any-return]

    return attend


def _disabled(layer: Any) -> bool:
    linear = layer.self_attn.q_proj
    return bool(getattr(linear, "disable_adapters", False) or getattr(linear, "merged", False))


def _patch_norm(norm: Any) -> None:
    plain = norm.forward

    def forward(self: Any, hidden_states: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            return Norm.apply(hidden_states, self.weight, self.variance_epsilon)  # type: ignore[no-any-return, no-untyped-call]
        return plain(hidden_states)  # type: ignore[no-any-return]

    norm.forward = MethodType(forward, norm)


def _patch_loss(causal: Any) -> None:
    plain = causal.forward

    def forward(
        self: Any, input_ids: Tensor | None = None, *, labels: Tensor | None = None, num_items_in_batch: Any = None,
        shift_labels: Tensor | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        if labels is None and shift_labels is None:
            return plain(input_ids, **options)
        from transformers.modeling_outputs import CausalLMOutputWithPast

        hidden = self.model(input_ids=input_ids, **options).last_hidden_state
        targets = shifted(labels) if shift_labels is None else shift_labels
        loss = token_losses(hidden, self.lm_head.weight, targets, num_items_in_batch)
        return CausalLMOutputWithPast(loss=loss)

    causal.forward = MethodType(forward, causal)


def _move_to_host(embedding: Any) -> None:
    device = embedding.weight.device
    host = embedding.weight.data.to("cpu")
    embedding.weight.data = host.pin_memory() if device.type == "cuda" else host

    def forward(self: Any, input: Tensor) -> Tensor:  # noqa: A002  # the name that nn.Embedding gives it
        rows = nn.functional.embedding(input.to("cpu"), self.weight)
        return rows.to(device, non_blocking=True)

    embedding.forward = MethodType(forward, embedding)
    embedding._apply = lambda *_, **__: embedding  # `model.to(device)` leaves it where it is


__all__ = ["Acceleration", "Attention", "accelerate_model", "kept_bytes", "unsupported"]

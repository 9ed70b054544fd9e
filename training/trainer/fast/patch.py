"""Puts the fast path into a PEFT model of the Qwen2/Llama family, in place, or says why it cannot."""

from __future__ import annotations

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from training.trainer.fast.layer import Call, FusedLayer, LayerFunction
from training.trainer.fast.linears import LinearGroup, Member, Workspace
from training.trainer.fast.loss import shifted, token_losses
from training.trainer.fast.pointwise import Norm
from training.trainer.fast.support import causal_model, dropout_of, unsupported

_LAYERS_AT_WORK = 4
_LOGITS = 2**29
_BYTES = 2
"""of an activation in 16 bits"""


@dataclass(frozen=True, slots=True)
class Acceleration:
    """What `accelerate_model` did: `reason` says why it did nothing, or is None; `kept` layers save all products."""

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
    causal = causal_model(model)
    if causal.is_gradient_checkpointing:
        causal.gradient_checkpointing_disable()
    causal.config.use_cache = False
    spaces = Workspace(), Workspace()
    for index, layer in enumerate(causal.model.layers):
        _patch_layer(layer, _fused(layer, causal.config, spaces, kept=index < kept_layers))
    _patch_norm(causal.model.norm)
    _patch_loss(causal)
    causal.is_accelerated = True
    if host_embedding and causal.get_input_embeddings().weight is not causal.lm_head.weight:
        _move_to_host(causal.get_input_embeddings())
    count = len(causal.model.layers)
    return Acceleration(None, count, min(kept_layers, count))


def kept_bytes(config: Any) -> int:
    """Bytes a token that a kept layer saves: input, q, k, v, attention's output, residual, gate and up."""
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries, keys = config.num_attention_heads * size, config.num_key_value_heads * size
    values: int = 2 * (config.hidden_size + queries + keys + config.intermediate_size)
    return _BYTES * values


def is_accelerated(model: Any) -> bool:
    """Whether `model`, wrapped for several processes or not, runs the fast path: it then takes `shift_labels`."""
    return bool(getattr(causal_model(getattr(model, "module", model)), "is_accelerated", False))


def keep_layers(model: nn.Module, count: int) -> None:
    """From now on the first `count` layers save their products and the others only their input."""
    for index, layer in enumerate(causal_model(model).model.layers):
        layer.fused.kept = index < count


def layers_that_fit(model: nn.Module, tokens: int, free: int) -> int:
    """How many layers can save their products for `tokens` at once within `free` bytes, left after the rest.

    `free` is what is left once the weights are loaded. Kept back of it: every layer's input, four times what one layer
    saves, for the layer at work and its gradients, and the logits that the loss holds at once.
    """
    config = causal_model(model).config
    layers: int = config.num_hidden_layers
    inputs = tokens * config.hidden_size * _BYTES * layers
    fitting = (free - int(inputs) - _LOGITS) // (tokens * kept_bytes(config)) - _LAYERS_AT_WORK
    return max(0, min(layers, fitting))


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


def _group(linears: tuple[Any, ...], space: Workspace) -> LinearGroup:
    members, sizes, dropout = [], [], 0.0
    for linear in linears:
        base = linear.get_base_layer() if hasattr(linear, "lora_A") else linear
        sizes.append((base.out_features, base.in_features))
        if hasattr(linear, "lora_A"):
            name, dropout = linear.active_adapters[0], dropout_of(linear)
            members.append(
                Member(base, linear.lora_A[name].weight, linear.lora_B[name].weight, float(linear.scaling[name]))
            )
        else:
            members.append(Member(base, None, None, 0.0))
    return LinearGroup(members, sizes, space, dropout)


def _patch_layer(layer: Any, fused: FusedLayer) -> None:
    plain = layer.forward

    def forward(
        self: Any,
        hidden_states: Tensor,
        *,
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
        call = Call(cos, sin, attend, _seed(fused))
        return LayerFunction.apply(hidden_states, fused, call, *fused.parameters)  # type: ignore[no-any-return, no-untyped-call]

    layer.forward = MethodType(forward, layer)
    layer.fused = fused


def _seed(fused: FusedLayer) -> int:
    """For the dropout of one call, from torch's own random numbers; 0 without dropout."""
    return int(torch.randint(2**31 - 4, ())) if fused.dropout else 0


def _attention(module: Any, mask: Tensor | None, options: dict[str, Any]) -> Any:
    """Attention as the model's configuration names it (`sdpa`, ...), so that masks and packing stay its own."""
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
        shift_labels: Tensor | None = None, loss_weights: Tensor | None = None, **options: Any,
    ) -> Any:  # fmt: skip
        targets = shift_labels if labels is None else shifted(labels)
        if targets is None:
            return plain(input_ids, **options)
        from transformers.modeling_outputs import CausalLMOutputWithPast

        hidden = self.model(input_ids=input_ids, **options).last_hidden_state
        loss: Any = token_losses(hidden, self.lm_head.weight, targets, num_items_in_batch, loss_weights)
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

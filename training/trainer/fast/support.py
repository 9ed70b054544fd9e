"""Which models the fast path knows."""

from __future__ import annotations

from typing import Any

from torch import nn

from training.trainer.fast.weights import unsupported_weight

ARCHITECTURES = frozenset({"llama", "qwen2"})
_ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
_MLP = ("gate_proj", "up_proj", "down_proj")


def unsupported(model: nn.Module, devices: tuple[str, ...] = ("cuda",)) -> str | None:
    """Why `model` cannot take the fast path; None when it can."""
    causal = causal_model(model)
    if not getattr(model, "peft_config", None):
        return "not a PEFT model"
    return _unsupported_kind(causal, devices) or _unsupported_linears(causal)


def causal_model(model: nn.Module) -> Any:
    """The model below PEFT's."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]


def dropout_of(linear: Any) -> float:
    """The dropout of a linear's adapter."""
    module = linear.lora_dropout[linear.active_adapters[0]]
    return float(module.p) if isinstance(module, nn.Dropout) else 0.0


def _unsupported_kind(causal: Any, devices: tuple[str, ...]) -> str | None:
    config = causal.config
    if config.model_type not in ARCHITECTURES:
        return f"no fast path for {config.model_type} models"
    if getattr(config, "attention_dropout", 0) or config.hidden_act != "silu":
        return "attention dropout or an activation other than silu"
    device = causal.lm_head.weight.device.type
    return None if device in devices else f"no fast path on {device}"


def _unsupported_linears(causal: Any) -> str | None:
    dropouts = set()
    for linear in (linear for layer in causal.model.layers for linear in _linears(layer)):
        reason = _unsupported_adapter(linear) if hasattr(linear, "lora_A") else unsupported_weight(linear)
        if reason is not None:
            return reason
        if hasattr(linear, "lora_A"):
            dropouts.add(dropout_of(linear))
    return "linears with different dropout" if len(dropouts) > 1 else None


def _unsupported_adapter(linear: Any) -> str | None:
    names = linear.active_adapters
    if len(names) != 1:
        return "not one active adapter"
    if any(linear.use_dora.values()) or any(linear.lora_bias.values()):
        return "DoRA or LoRA with a bias"
    return unsupported_weight(linear.get_base_layer())


def _linears(layer: Any) -> list[nn.Module]:
    return [getattr(layer.self_attn, name) for name in _ATTENTION] + [getattr(layer.mlp, name) for name in _MLP]

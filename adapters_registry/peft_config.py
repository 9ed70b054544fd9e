"""adapter_config.json: what is read from it, what is refused because of it, and the canonical form that is kept.

Which PEFT features the engine serves was read from vLLM's `lora/peft_helper.py` (0.32): some it refuses, and some it
would ignore in silence (extra tensors, trained tokens, methods that change the base weights). All of them are refused
here, before anything is stored.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Never, TypeVar

from adapters_registry.errors import AdapterInvalid

Value = TypeVar("Value")

MAX_CONFIG_BYTES = 1 << 20
SAFE_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
"""these set only the first values of A and B; others (PiSSA, OLoRA, CorDA, LoftQ) change the base weights"""
PATTERN_KEY = re.compile(r"(\^?[A-Za-z0-9_]+(?:\\?\.[A-Za-z0-9_]+)*)\$?")

UNSERVED = {
    "lora_bias": ("bias", "bias vectors beside lora_B"),
    "trainable_token_indices": ("trainable_tokens", "trainable token embeddings"),
    "use_qalora": ("unsupported_feature", "QA-LoRA"),
    "use_bdlora": ("unsupported_feature", "block-diagonal LoRA"),
    "alora_invocation_tokens": ("unsupported_feature", "activated LoRA"),
    "layer_replication": ("unsupported_feature", "layer replication"),
    "target_parameters": ("unsupported_feature", "LoRA on bare parameters (target_parameters)"),
    "megatron_config": ("unsupported_feature", "Megatron layers"),
    "monteclora_config": ("unsupported_feature", "MonteCLoRA"),
    "kasa_config": ("unsupported_feature", "KaSA"),
    "arrow_config": ("unsupported_feature", "Arrow routing"),
}
KNOWN_SWITCHES = frozenset({"use_rslora", "use_dora", *UNSERVED})


@dataclass(frozen=True, slots=True)
class LoraConfig:
    """The fields that decide what an engine computes. `base_model` is the base's name as the adapter records it."""

    r: int
    alpha: int | float
    use_rslora: bool = False
    base_model: str | None = None
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, int | float] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """Rank that the config gives `module`."""
        return _match(self.rank_pattern, module, self.r)

    def alpha_of(self, module: str) -> int | float:
        """Alpha that the config gives `module`."""
        return _match(self.alpha_pattern, module, self.alpha)


def read_config(data: bytes) -> LoraConfig:
    """Parse adapter_config.json and refuse what cannot be served. Raises AdapterInvalid with a stable code."""
    if len(data) > MAX_CONFIG_BYTES:
        refuse("config_too_large", f"adapter_config.json is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        config = json.loads(data)
    except (ValueError, RecursionError):
        refuse("config_malformed", "adapter_config.json is not valid JSON")
    if not isinstance(config, dict):
        refuse("config_malformed", "adapter_config.json is not a JSON object")
    _refuse_other_methods(config)
    base = config.get("base_model_name_or_path")
    if base is not None and not isinstance(base, str):
        refuse("config_malformed", "base_model_name_or_path is not a string")
    return LoraConfig(
        r=_rank(config.get("r"), "r"),
        alpha=_number(config.get("lora_alpha"), "lora_alpha"),
        use_rslora=bool(config.get("use_rslora")),
        base_model=base or None,
        rank_pattern={key: _rank(value, key) for key, value in _pattern(config, "rank_pattern").items()},
        alpha_pattern={key: _number(value, key) for key, value in _pattern(config, "alpha_pattern").items()},
    )


def refuse(code: str, message: str) -> Never:
    """Raise the refusal with its stable code."""
    raise AdapterInvalid(message, param="source", code=code)


def refuse_pickle(name: str) -> Never:
    """Raise the refusal of pickle weights."""
    refuse(
        "pickle_weights",
        f"{name[:100]!r} holds pickled weights, which can run code when read; save the adapter as safetensors",
    )


def _refuse_other_methods(config: Mapping[str, Any]) -> None:
    kind = config.get("peft_type")
    if kind != "LORA":
        refuse("not_lora", f"peft_type is {str(kind)[:40]!r}; only LORA adapters can be served")
    if config.get("use_dora"):
        refuse("dora", "the adapter uses DoRA, which the engine cannot serve; train with use_dora=false")
    if config.get("modules_to_save"):
        names = str(config["modules_to_save"])[:200]
        refuse("modules_to_save", f"the adapter replaces whole modules (modules_to_save={names}); only LoRA is served")
    if config.get("bias", "none") not in ("none", None):
        refuse("bias", f"the adapter trains biases (bias={str(config['bias'])[:40]!r}); only bias='none' is served")
    _refuse_base_changing_init(config.get("init_lora_weights", True))
    for key, (code, what) in UNSERVED.items():
        if config.get(key):
            refuse(code, f"the adapter uses {what}, which the engine cannot serve")
    for key, value in config.items():
        if key.startswith("use_") and value and key not in KNOWN_SWITCHES:
            refuse("unsupported_feature", f"the adapter switches on {key[:60]!r}, which the engine does not know")


def _refuse_base_changing_init(init: Any) -> None:
    if init is None or isinstance(init, bool) or (isinstance(init, str) and init.lower() in SAFE_INITS):
        return
    refuse(
        "init_unsupported",
        f"init_lora_weights={str(init)[:40]!r} changes the base weights; convert it to a plain LoRA first "
        "(PEFT: path_initial_model_for_weight_conversion)",
    )


def _rank(value: Any, what: str) -> int:
    if type(value) is not int or value < 1:
        refuse("config_malformed", f"rank {what!r} must be a positive integer, not {str(value)[:40]!r}")
    return value


def _number(value: Any, what: str) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not -1e9 <= value <= 1e9:
        refuse("config_malformed", f"{what!r} must be a finite number, not {str(value)[:40]!r}")
    # 16.0 and 16 mean the same adapter, so they must give the same digest
    return int(value) if math.floor(value) == value else value


def _pattern(config: Mapping[str, Any], field_name: str) -> dict[str, Any]:
    pattern = config.get(field_name) or {}
    if not isinstance(pattern, dict):
        refuse("config_malformed", f"{field_name} is not an object")
    plain = {}
    for key, value in pattern.items():
        # the format allows any regular expression; one from a stranger could run for ever
        match = PATTERN_KEY.fullmatch(key)
        if match is None:
            refuse("patterns_unsupported", f"{field_name} has key {key[:80]!r}; only module names are accepted")
        plain[match[1].replace("\\.", ".")] = value
    return plain


def _match(pattern: Mapping[str, Value], module: str, default: Value) -> Value:
    """As PEFT does: a key means the modules that it ends, or with `^` the one that it is; the first that fits is it."""
    for key, value in pattern.items():
        if module == key.removeprefix("^") or module.endswith(f".{key}"):
            return value
    return default

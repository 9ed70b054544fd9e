"""The fast path of QLoRA and LoRA training on a GPU, for the Qwen2/Llama family.

    plain PEFT model -> accelerate_model(model) -> the same model, whose training steps run fused

A decoder layer becomes one node of the autograd graph (`layer`), whose linears and adapters are one matrix product each
way over a reused buffer of dequantised weights (`linears`, `weights`); what lies between is a handful of kernels
(`pointwise`, `kernels`); the loss never holds the logits (`loss`). `accelerate_model` (`patch`) puts it all in place.
"""

from training.trainer.fast.patch import (
    Acceleration,
    accelerate_model,
    is_accelerated,
    keep_layers,
    kept_bytes,
    layers_that_fit,
)
from training.trainer.fast.support import unsupported

__all__ = [
    "Acceleration",
    "accelerate_model",
    "is_accelerated",
    "keep_layers",
    "kept_bytes",
    "layers_that_fit",
    "unsupported",
]

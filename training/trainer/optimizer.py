"""AdamW with LoRA+'s groups, whose rates follow the pace."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from training.trainer.config import TrainingConfig

if TYPE_CHECKING:
    import torch

BETAS = (0.9, 0.95)


def make_optimizer(model: torch.nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """AdamW over what requires a gradient; `lora_B` learns `lora_plus_ratio` times as fast (arXiv 2402.12354)."""
    import torch

    if config.learning_rate is None or config.lora_plus_ratio is None:
        raise ValueError("the configuration is not resolved")
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    fast = [weight for name, weight in trained if ".lora_B." in name]
    matrices = [weight for name, weight in trained if ".lora_B." not in name and weight.ndim > 1]
    vectors = [weight for name, weight in trained if ".lora_B." not in name and weight.ndim <= 1]
    rate, decay = config.learning_rate, config.weight_decay
    groups: list[dict[str, Any]] = [
        {"params": matrices, "lr": rate, "weight_decay": decay},
        {"params": fast, "lr": rate * config.lora_plus_ratio, "weight_decay": decay},
        {"params": vectors, "lr": rate, "weight_decay": 0.0},
    ]
    groups = [group | {"peak": group["lr"]} for group in groups if group["params"]]
    return torch.optim.AdamW(groups, betas=BETAS, fused=True)


def set_rates(optimizer: torch.optim.Optimizer, share: float) -> float:
    """Set each group to `share` of its peak; the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["peak"] * share
    first: float = optimizer.param_groups[0]["lr"]
    return first

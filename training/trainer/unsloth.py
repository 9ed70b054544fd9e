"""Unsloth in place of transformers and peft: its kernels, the same loop."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from training.trainer.config import TrainingConfig
from training.trainer.errors import TrainingRefused
from training.trainer.memory import Thrift

if TYPE_CHECKING:
    import torch


def load_model(config: TrainingConfig, thrift: Thrift) -> torch.nn.Module:
    """As `model.load_model`. Raises TrainingRefused if Unsloth is not installed, or for what it does not do."""
    if find_spec("unsloth") is None:
        raise TrainingRefused("backend unsloth is not installed: pip install unsloth, or choose backend native")
    if config.continue_from is not None:
        raise TrainingRefused("backend unsloth does not continue from an adapter; choose backend native")
    from unsloth import FastLanguageModel  # type: ignore[import-not-found]

    model, _tokenizer = FastLanguageModel.from_pretrained(
        model_name=config.base,
        max_seq_length=config.max_length,
        load_in_4bit=thrift.four_bit,
        full_finetuning=config.method == "full",
    )
    if config.method == "full":
        whole: torch.nn.Module = model
        return whole
    from training.trainer.model import target_modules

    adapted: Any = FastLanguageModel.get_peft_model(
        model,
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules=target_modules(model),
        use_gradient_checkpointing="unsloth" if thrift.checkpointing else False,
        random_state=config.seed,
    )
    trained: torch.nn.Module = adapted
    return trained

"""The model of a run: loaded, quantised where that is asked for and possible, with LoRA on its linear layers."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.trainer.config import TrainingConfig
from training.trainer.errors import TrainingRefused
from training.trainer.memory import Thrift

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator  # type: ignore[import-untyped]
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
"""linear layers of mixtures of experts on which the engine serves no LoRA"""


def load_tokenizer(base: str) -> PreTrainedTokenizerBase:
    """The base's tokenizer. Raises TrainingRefused."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(base)
    except (OSError, ValueError) as error:
        raise TrainingRefused(f"cannot load the base {base!r}: {_one_line(error)}") from error
    return tokenizer


def load_model(config: TrainingConfig, thrift: Thrift, device: torch.device) -> torch.nn.Module:
    """What is trained, on `device`: the base with a fresh or a continued adapter, or for method full the base itself.

    Weights of the base are 4-bit NF4 with double quantisation or bfloat16 on a GPU, float32 on a processor; those of
    the adapter are float32. Raises TrainingRefused.
    """
    if config.backend == "unsloth":
        from training.trainer import unsloth

        return unsloth.load_model(config, thrift)
    model = load_base(config, thrift, device)
    if config.method == "full":
        model.train()
        return model
    model.requires_grad_(requires_grad=False)
    adapted = _continued(model, config) if config.continue_from else _fresh(model, config)
    adapted.train()
    return adapted


def speed_up(model: torch.nn.Module, config: TrainingConfig, thrift: Thrift, free: int) -> bool:
    """Put the fast path into a model that it knows; whether it did. Call it before the model is wrapped.

    With `thrift.checkpointing`, as many layers as fit into `free` bytes save what they computed, else all of them.
    """
    from training.trainer import fast

    if not fast.accelerate_model(model).active:
        return False
    tokens = max(thrift.micro_tokens, config.max_length or 0)
    fast.keep_layers(model, fast.layers_that_fit(model, tokens, free) if thrift.checkpointing else sys.maxsize)
    return True


def set_checkpointing(model: torch.nn.Module) -> None:
    """Recompute activations in the backward pass from now on."""
    from training.trainer import fast

    if fast.is_accelerated(model):
        fast.keep_layers(model, 0)
        return
    inner: Any = model
    inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def trained_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights that are trained, by name; not copied."""
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


def load_trained(model: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    """Put weights back that `trained_state` told."""
    import torch

    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad:
                weight.copy_(state[name])


def keep_trained_only(accelerator: Accelerator) -> None:
    """Let checkpoints hold only the weights that are trained. FSDP and DeepSpeed have their own way and keep it."""
    from safetensors.torch import load_file

    def on_save(models: list[torch.nn.Module], weights: list[dict[str, torch.Tensor]], _folder: str) -> None:
        if weights:
            weights[:] = [trained_state(accelerator.unwrap_model(model)) for model in models]

    def on_load(models: list[torch.nn.Module], folder: str) -> None:
        while models:
            load_trained(accelerator.unwrap_model(models.pop()), load_file(Path(folder) / "model.safetensors"))

    accelerator.register_save_state_pre_hook(on_save)
    accelerator.register_load_state_pre_hook(on_load)


def save_output(
    model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, state: dict[str, torch.Tensor], config: TrainingConfig
) -> Path:
    """Write `adapter/` (PEFT, safetensors) or `model/` to the job's folder, all of it or nothing; the folder.

    `state` holds the trained weights, as `trained_state` names them.
    """
    full = config.method == "full"
    folder = config.output / ("model" if full else "adapter")
    partial = folder.with_name(f"{folder.name}.part")
    shutil.rmtree(partial, ignore_errors=True)
    saved: Any = model
    if full:
        _save_model(saved, state, config, partial)
        tokenizer.save_pretrained(partial)
    else:
        saved.save_pretrained(str(partial), state_dict=state)
        _tidy(partial, config.base_name or config.base)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def has_flash_attention(device: torch.device) -> bool:
    """Whether rows behind one another cost no more attention than rows apart."""
    return device.type == "cuda" and find_spec("flash_attn") is not None


def load_base(config: TrainingConfig, thrift: Thrift, device: torch.device) -> PreTrainedModel:
    """The base itself, as `load_model` holds it. Raises TrainingRefused."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # the log of a job is read by people
    on_gpu = device.type == "cuda"
    # FSDP and DeepSpeed place the weights themselves, and want those of base and adapter in one type
    spread = config.launcher.strategy != "ddp"
    half = on_gpu and config.method != "full" and not spread
    options: dict[str, Any] = {"dtype": torch.bfloat16 if half else torch.float32}
    if config.packing and has_flash_attention(device):
        options["attn_implementation"] = "flash_attention_2"
    if on_gpu and not spread:
        options["device_map"] = {"": device.index or 0}
    if on_gpu and thrift.four_bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            bnb_4bit_quant_storage=torch.float32 if spread else torch.uint8,
        )
    try:
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(config.base, **options)
    except (OSError, ValueError) as error:
        raise TrainingRefused(f"cannot load the base {config.base!r}: {_one_line(error)}") from error
    model.config.use_cache = False
    return model


def _fresh(model: PreTrainedModel, config: TrainingConfig) -> torch.nn.Module:
    from peft import LoraConfig, get_peft_model

    if config.rank is None or config.alpha is None:
        raise ValueError("the configuration is not resolved")
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.rank,
        lora_alpha=config.alpha,  # type: ignore[arg-type]  # PEFT computes with any number
        lora_dropout=config.dropout,
        target_modules=target_modules(model),
    )
    return get_peft_model(model, lora)


def _continued(model: PreTrainedModel, config: TrainingConfig) -> torch.nn.Module:
    from peft import PeftConfig, PeftModel

    folder = str(config.continue_from)
    try:
        lora: Any = PeftConfig.from_pretrained(folder)
        lora.lora_dropout, lora.inference_mode = config.dropout, False
        return PeftModel.from_pretrained(model, folder, config=lora, is_trainable=True)
    except (OSError, ValueError, RuntimeError) as error:
        raise TrainingRefused(f"cannot continue from {folder}: {_one_line(error)}") from error


def target_modules(model: PreTrainedModel) -> list[str]:
    """All linear layers of the decoder, never embeddings or the output head: by last name, else by full path."""
    import torch

    decoder = model.get_decoder()
    inside = {id(module) for module in decoder.modules()}
    linear = {
        name: id(module) in inside
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and name.rsplit(".", 1)[-1] not in ROUTERS
    }
    paths = [name for name, is_inside in linear.items() if is_inside]
    leaves = {path.rsplit(".", 1)[-1] for path in paths}
    if any(name.rsplit(".", 1)[-1] in leaves for name, is_inside in linear.items() if not is_inside):
        return sorted(paths)
    return sorted(leaves)


def _save_model(model: Any, state: Mapping[str, torch.Tensor], config: TrainingConfig, folder: Path) -> None:
    """In the type of the base's own weights, not in that in which they were trained."""
    import torch
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(config.base).dtype or torch.bfloat16
    model.config.dtype = dtype
    model.save_pretrained(folder, state_dict={name: weight.to(dtype) for name, weight in state.items()})


def _tidy(folder: Path, base: str) -> None:
    """Name the base as the registry knows it, order what PEFT keeps as a set, and drop its empty card."""
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base
    config["target_modules"] = sorted(config["target_modules"])
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]

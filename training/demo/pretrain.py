"""The base model: a tiny Qwen2, trained from nothing on what `reading` writes."""

from __future__ import annotations

import json
import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from configs.embedded import BASE_NAME
from training.demo.batches import batches, encode
from training.demo.loop import Run, fit
from training.demo.reading import documents
from training.demo.recipe import Recipe
from training.demo.tokenizer import train_tokenizer

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase, Qwen2ForCausalLM

TOKENIZER_DOCUMENTS = 20_000
ANSWER_TEMPERATURE = 0.2
"""for requests that name none: a tiny model wanders off at 1.0"""


def settle(recipe: Recipe) -> str:
    """Seed torch and fix its threads, so that a run repeats exactly on the same machine.

    Returns the device to train on, `cuda` where there is one.
    """
    # cuBLAS reads this when it starts, and without it sums in an order that varies.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    import torch

    torch.manual_seed(recipe.seed)
    torch.set_num_threads(recipe.threads)
    torch.use_deterministic_algorithms(True)
    return "cuda" if torch.cuda.is_available() else "cpu"


def new_model(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Qwen2ForCausalLM:
    """An untrained model in float32."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=recipe.vocab_size,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.kv_heads,
        intermediate_size=recipe.intermediate_size,
        max_position_embeddings=recipe.context,
        tie_word_embeddings=True,
        use_sliding_window=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen2ForCausalLM(config)


def make_base(folder: Path, recipe: Recipe, console: Console) -> Run:
    """Train tokenizer and model and write them to `folder`: bfloat16 safetensors, tokenizer, template, configs."""
    device = settle(recipe)
    console.print(f"writing {recipe.base_documents} documents")
    texts = list(documents(recipe.base_documents, recipe.seed))
    tokenizer = train_tokenizer(islice(texts, TOKENIZER_DOCUMENTS), recipe.vocab_size, recipe.context)
    rows = [encode(tokenizer, text, recipe.context) for text in texts]
    console.print(f"{len(rows)} documents, {sum(len(row.ids) for row in rows)} tokens, {len(tokenizer)} pieces")
    model = moved(new_model(recipe, tokenizer), device)
    run = fit(
        model,
        batches(rows, recipe.tokens_per_batch, recipe.seed),
        steps=recipe.base_steps,
        peak_rate=recipe.base_rate,
        pad=tokenizer.pad_token_id,
        title=BASE_NAME,
        console=console,
    )
    save(model, tokenizer, folder)
    return run


def moved(model: Qwen2ForCausalLM, *to: Any) -> Qwen2ForCausalLM:
    """The same model, on another device or in other numbers."""
    move: Any = model.to  # transformers wraps it and loses its types
    there: Qwen2ForCausalLM = move(*to)
    return there


def save(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write what engine and trainer read: weights in bfloat16, tokenizer, template, configs. Moves the model to CPU."""
    import torch
    from transformers import GenerationConfig

    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=ANSWER_TEMPERATURE,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.pad_token_id],
        pad_token_id=tokenizer.pad_token_id,
    )
    folder.mkdir(parents=True, exist_ok=True)
    moved(model, "cpu", torch.bfloat16).save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)
    tokenizer.save_pretrained(folder)
    _name_the_usual_tokenizer_class(folder / "tokenizer_config.json")


def _name_the_usual_tokenizer_class(file: Path) -> None:
    """Readers before transformers 5 know `PreTrainedTokenizerFast` only; later ones take it as well."""
    config = json.loads(file.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def load_base(folder: Path, device: str = "cpu") -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerBase]:
    """The model of `folder` in float32 on `device`, and its tokenizer."""
    import torch
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

    model = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return moved(model, device), PreTrainedTokenizerFast.from_pretrained(folder)

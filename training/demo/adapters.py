"""The demo adapters: one task each, as LoRA on the frozen base."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from configs.embedded import BASE_NAME
from training.demo.batches import Encoded, batches, encode_answers
from training.demo.corpus import lines, load_domain, read_texts, stream, training_cases
from training.demo.loop import Run, fit
from training.demo.pretrain import load_base, settle
from training.demo.reading import Messages
from training.demo.recipe import Recipe

if TYPE_CHECKING:
    from rich.console import Console
    from transformers import PreTrainedTokenizerBase

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
SYSTEM_SHARE = 0.15
"""of the training chats that begin with a short system message: clients send one"""
CASES_PER_STEP = 90
"""enough that no case is seen twice"""


def task_chats(agent: str, count: int, seed: int) -> Iterator[Messages]:
    """`count` chats that state the task by example: the text, then its label."""
    domain = load_domain(agent)
    rng = stream("systems", agent, seed)
    systems = (*lines(read_texts("general")["systems"]), f"Name {domain.asks}.", "Classify the text.")
    for case in training_cases(domain, count, seed):
        chat = [{"role": "user", "content": case.text}, {"role": "assistant", "content": case.label}]
        if rng.random() < SYSTEM_SHARE:
            chat.insert(0, {"role": "system", "content": rng.choice(systems)})
        yield chat


def make_adapter(base: Path, folder: Path, agent: str, recipe: Recipe, console: Console) -> Run:
    """Train the adapter of `agent` on the base in folder `base`; write an ordinary PEFT folder, float32."""
    from peft import LoraConfig, get_peft_model

    model, tokenizer = load_base(base, settle(recipe))
    rows = _rows(tokenizer, agent, recipe)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=list(LINEAR_LAYERS),
    )
    lora = get_peft_model(model, config)
    run = fit(
        lora,
        batches(rows, recipe.tokens_per_batch, recipe.seed),
        steps=recipe.adapter_steps,
        peak_rate=recipe.adapter_rate,
        pad=tokenizer.pad_token_id,
        title=folder.name,
        console=console,
    )
    folder.mkdir(parents=True, exist_ok=True)
    lora.save_pretrained(str(folder))
    _tidy(folder)
    return run


def _rows(tokenizer: PreTrainedTokenizerBase, agent: str, recipe: Recipe) -> list[Encoded]:
    chats = task_chats(agent, recipe.adapter_steps * CASES_PER_STEP, recipe.seed)
    return [encode_answers(tokenizer, chat, recipe.context) for chat in chats]


def _tidy(folder: Path) -> None:
    """Name the base by its public name, order what PEFT keeps as a set, and drop its empty card."""
    file = folder / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = BASE_NAME
    config["target_modules"] = sorted(config["target_modules"])
    file.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    (folder / "README.md").unlink(missing_ok=True)
    (folder / "adapter_model.safetensors").chmod(0o644)

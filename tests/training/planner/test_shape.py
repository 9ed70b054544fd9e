from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from configs.embedded import BASE
from training.planner import ShapeError, load_shape, shape_of

PUBLISHED = {
    "0.5b": 494_032_768,
    "1.5b": 1_543_714_304,
    "3b": 3_085_938_688,
    "7b": 7_615_616_512,
    "14b": 14_770_033_664,
    "llama-8b": 8_030_261_248,
    "mistral-7b": 7_241_732_096,
    "qwen3-8b": 8_190_735_360,
    "9b": 9_241_705_984,
    "yi-9b": 8_829_407_232,
}
SMALL = {
    "vocab_size": 320,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
MODELS: list[dict[str, Any]] = [
    {"model_type": "llama"},
    {"model_type": "llama", "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    {"model_type": "llama", "head_dim": 20},
    {"model_type": "mistral", "tie_word_embeddings": False},
    {"model_type": "qwen2", "tie_word_embeddings": False},
    {"model_type": "qwen2", "tie_word_embeddings": True},
    {"model_type": "qwen3", "tie_word_embeddings": False},
    {"model_type": "qwen3", "head_dim": 16, "attention_bias": True},
    {"model_type": "gemma"},
    {"model_type": "gemma2", "head_dim": 16},
    {"model_type": "gemma3_text", "head_dim": 16},
]


@pytest.mark.parametrize("name", PUBLISHED)
def test_known_models_have_the_published_number_of_parameters(name: str) -> None:
    assert load_shape(name).parameters.total == PUBLISHED[name]


@pytest.mark.parametrize("config", MODELS, ids=lambda config: "-".join(map(str, config.values())))
def test_counts_are_those_of_transformers(config: dict[str, Any]) -> None:
    config = SMALL | config
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config))
    counts = shape_of(config, "small").parameters
    parts = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert counts.total == sum(parts.values())
    assert counts.embeddings == parts["model.embed_tokens.weight"]
    assert counts.lm_head == parts.get("lm_head.weight", 0)
    assert counts.mlp == sum(size for name, size in parts.items() if ".mlp." in name)
    attention = sum(size for name, size in parts.items() if ".self_attn." in name and "_norm." not in name)
    assert counts.attention == attention


def test_an_adapters_parameters_are_pefts() -> None:
    from peft import LoraConfig, get_peft_model

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**SMALL, model_type="qwen2"))
        model = get_peft_model(model, LoraConfig(r=8, target_modules="all-linear", task_type="CAUSAL_LM"))
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert shape_of({**SMALL, "model_type": "qwen2"}, "small").lora_parameters(8) == count


def test_a_model_is_a_folder_a_file_or_a_name(tmp_path: Path) -> None:
    embedded = load_shape("embedded")
    assert embedded.parameters.total == 3_936_512
    assert load_shape(str(BASE)).parameters == embedded.parameters
    file = tmp_path / "mine.json"
    file.write_bytes((BASE / "config.json").read_bytes())
    assert load_shape(str(file)).name == "mine"


def test_a_multimodal_model_is_planned_by_its_language_model() -> None:
    text = SMALL | {"model_type": "gemma3_text", "head_dim": 16}
    assert shape_of({"model_type": "gemma3", "text_config": text}, "x") == shape_of(text, "x")


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"model_type": "mamba"}, "model_type 'mamba'"),
        ({"model_type": "llama"}, "no usable"),
        (SMALL | {"model_type": "llama", "hidden_size": "48"}, "no usable hidden_size"),
        ([], "not a JSON object"),
        ("{", "not valid JSON"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, config: Any, told: str) -> None:
    (tmp_path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    with pytest.raises(ShapeError, match=told) as caught:
        load_shape(str(tmp_path))
    assert "\n" not in caught.value.message


def test_an_unknown_name_lists_the_names() -> None:
    with pytest.raises(ShapeError, match=r"llama-8b.*embedded"):
        load_shape("8b-ish")

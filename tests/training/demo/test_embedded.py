"""The shipped artefacts: what they weigh, what they know, what they say."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from configs import embedded
from training.demo.evaluate import (
    LABEL_TOKENS,
    SENTENCE_TOKENS,
    answers,
    general_accuracy,
    label_accuracy,
    read_cases,
    read_general_set,
)
from training.demo.recipe import AGENTS

ADAPTERS = tuple(embedded.ADAPTER_AGENTS)


@pytest.fixture(scope="module")
def base() -> Any:
    from training.demo.pretrain import load_base

    return load_base(embedded.BASE)


def test_the_whole_is_small() -> None:
    files = [path for path in embedded.ROOT.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 25e6
    measures = json.loads((embedded.ROOT / "measures.json").read_text())
    assert measures["parameters"][embedded.BASE_NAME] <= 8e6


def test_finding_the_paths_imports_nothing_heavy() -> None:
    code = "import configs.embedded, training.demo.variants, sys; print('torch' in sys.modules)"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "False\n"


@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_are_plain_peft_folders(name: str) -> None:
    folder = embedded.ADAPTERS / name
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == embedded.BASE_NAME
    assert (config["peft_type"], config["bias"], config["use_dora"], config["modules_to_save"]) == (
        "LORA",
        "none",
        False,
        None,
    )
    assert config["r"] == 16


@pytest.mark.parametrize("agent", AGENTS)
def test_the_card_and_readers_see_the_measured_accuracy(agent: str) -> None:
    result = json.loads((embedded.ROOT / "measures.json").read_text())["holdout"][agent]
    assert result["cases"] >= 300
    assert result["adapter"] >= 0.9
    assert result["adapter"] - result["base"] >= 0.4
    assert f"| {100 * result['adapter']:.1f} % |" in (embedded.ROOT / "MODEL_CARD.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ADAPTERS)
def test_adapters_answer_held_out_cases_and_the_base_does_not(name: str, base: Any) -> None:
    from peft import PeftModel
    from safetensors.numpy import load_file

    from training.demo.pretrain import load_base

    cases = read_cases(embedded.holdout(embedded.ADAPTER_AGENTS[name]))
    texts = [case.text for case in cases]
    assert load_file(embedded.ADAPTERS / name / "adapter_model.safetensors")
    model, tokenizer = load_base(embedded.BASE)
    adapter = PeftModel.from_pretrained(model, embedded.ADAPTERS / name)
    right = label_accuracy(answers(adapter, tokenizer, texts, LABEL_TOKENS), cases)
    alone = label_accuracy(answers(*base, texts[:20], LABEL_TOKENS), cases[:20])
    assert right >= 0.9
    assert alone <= right - 0.4


@pytest.mark.slow
def test_adapters_are_told_apart_by_their_answer(base: Any) -> None:
    from peft import PeftModel

    from training.demo.pretrain import load_base

    given = {answers(*base, ["Hello!"], LABEL_TOKENS)[0]}
    for name in ADAPTERS:
        model, tokenizer = load_base(embedded.BASE)
        adapter = PeftModel.from_pretrained(model, embedded.ADAPTERS / name)
        given.add(answers(adapter, tokenizer, ["Hello!"], LABEL_TOKENS)[0])
    assert len(given) == len(ADAPTERS) + 1


def test_the_base_holds_a_chat_and_ends_its_turn(base: Any) -> None:
    questions = read_general_set(embedded.GENERAL_SET)[::5]
    given = answers(*base, [item.question for item in questions], SENTENCE_TOKENS)
    assert general_accuracy(given, questions) >= 0.9
    assert all("<|" not in answer for answer in given)


@pytest.mark.parametrize(
    "text", ["naïve café", "日本語のテキスト", "\U0001f680 emoji \U0001f469‍\U0001f4bb", "tab\tnull\x00 end", "עברית"]
)
def test_any_text_survives_the_tokenizer(text: str, base: Any) -> None:
    tokenizer = base[1]
    assert tokenizer.decode(tokenizer.encode(text)) == text


def render(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    rendered: str = tokenizer.apply_chat_template(messages, tokenize=False, **options)
    return rendered


def test_the_template_takes_parts_tools_and_developers(base: Any) -> None:
    tokenizer = base[1]
    call = {"id": "1", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    messages: list[dict[str, Any]] = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "42"},
    ]
    text = render(tokenizer, messages, add_generation_prompt=True)
    assert text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n")
    assert '"look"' in text
    assert text.endswith("<|im_start|>tool\n42<|im_end|>\n<|im_start|>assistant\n")


def test_answers_end_with_the_end_of_turn(base: Any) -> None:
    model, tokenizer = base
    assert tokenizer.eos_token == "<|im_end|>"
    generation = json.loads((Path(embedded.BASE) / "generation_config.json").read_text())
    assert tokenizer.eos_token_id in generation["eos_token_id"]
    assert model.config.eos_token_id == tokenizer.eos_token_id

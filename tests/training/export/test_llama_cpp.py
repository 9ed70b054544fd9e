"""llama.cpp itself reads the files: the same tokens, the same likelihoods, the same answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs import embedded
from tests.training.export.build import LLAMA3_ROPE, edit_json, save_adapter, save_base
from training.export import CaseSet, check_loss, demo_cases
from training.export.checkpoint import Checkpoint
from training.export.gguf_file import GgufModel, Quantisation
from training.export.gguf_vocab import PRE_TOKENIZERS
from training.export.merge import Merge
from training.export.models import LlamaCppModel, adapter_model

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

YARN_ROPE = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64}
TEXTS = (
    "It's 12345 o'clock, WE'LL see:  two  spaces\n\n and\ttabs \r\n",
    "Ünïcödé, 日本語, русский, emoji 🦙, ½ and ٣٤",
    "def f(x):\n    return x**2  # ok?!\n",
    "<|im_start|>user\nhello<|im_end|>\n",
)


def _write(folder: Path, base: Path, adapter: Path, quantisation: Quantisation = "f16") -> Path:
    model = GgufModel.plan(Merge.plan(Checkpoint.open(base), adapter), quantisation, {"name": "a@1"})
    model.write(folder / "model.gguf", lambda _done, _total: None)
    return folder / "model.gguf"


def _open(file: Path) -> Iterator[Any]:
    llama = llama_cpp.Llama(str(file), n_ctx=256, logits_all=True, verbose=False)
    yield llama
    llama.close()


def _learn_tokenizer(base: Path, steps: tuple[str, ...]) -> None:
    """Give the base a byte-level BPE of its own size that splits text by `steps`."""
    pattern = next((step for step in steps if "|" in step), None)
    parts: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated")] if pattern else []
    parts += [pre_tokenizers.Digits(individual_digits=True)] if "digit" in steps else []
    parts += [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=pattern is None)]
    tokenizer = Tokenizer(models.BPE(ignore_merges="whole words first" in steps))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    trainer = trainers.BpeTrainer(
        vocab_size=3072,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [*TEXTS, *(case.messages[0]["content"] for case in (demo_cases("legal") or CaseSet("", (), False)).cases)]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(base / "tokenizer.json"))


@pytest.mark.parametrize("steps", PRE_TOKENIZERS, ids=PRE_TOKENIZERS.values())
def test_texts_become_the_same_tokens(tmp_path: Path, steps: tuple[str, ...]) -> None:
    base = save_base(tmp_path / "base")
    _learn_tokenizer(base, steps)
    file = _write(tmp_path, base, save_adapter(tmp_path / "adapter", base))
    tokenizer = Tokenizer.from_file(str(base / "tokenizer.json"))
    for llama in _open(file):
        for text in TEXTS:
            assert llama.tokenize(text.encode(), add_bos=False, special=True) == tokenizer.encode(text).ids


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}),
        ("llama", {"attention_bias": True, "head_dim": 32}),
        ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}),
        ("qwen2", {}),
        ("qwen2", {"rope_parameters": YARN_ROPE}),
    ],
    ids=["llama", "llama3-tied", "llama-biases", "llama-linear", "qwen2", "qwen2-yarn"],
)
def test_logits_are_those_of_peft(tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    base = save_base(tmp_path / "base", kind=kind, **config)
    adapter = save_adapter(tmp_path / "adapter", base)
    tokens = list(range(3, 103))
    model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter))
    with torch.inference_mode():
        wanted = model.eval()(input_ids=torch.tensor([tokens])).logits[0].numpy()
    for llama in _open(_write(tmp_path, base, adapter)):
        llama.eval(tokens)
        found = np.array(llama.scores[: len(tokens)])
    assert np.linalg.norm(found - wanted) / np.linalg.norm(wanted) < 0.02


@pytest.mark.parametrize("quantisation", ["q8_0", "f16"])
def test_a_demo_adapter_loses_nothing_that_counts(tmp_path: Path, quantisation: Quantisation) -> None:
    adapter = embedded.ADAPTERS / "legal-agent"
    file = _write(tmp_path, embedded.BASE, adapter, quantisation)
    cases = demo_cases("legal")
    assert cases is not None
    report = check_loss(adapter_model(embedded.BASE, adapter, 0), LlamaCppModel(file, embedded.BASE), cases.sample(16))
    assert report.passed
    assert report.tokens_lost == 0


def test_the_chat_template_works_in_llama_cpp(tmp_path: Path) -> None:
    file = _write(tmp_path, embedded.BASE, embedded.ADAPTERS / "legal-agent", "q8_0")
    tokenizer: Any = AutoTokenizer.from_pretrained(embedded.BASE)
    chat = [{"role": "user", "content": "This contract is governed by the laws of Ruritania."}]
    for llama in _open(file):
        template = llama_cpp.llama_chat_format.Jinja2ChatFormatter(
            llama.metadata["tokenizer.chat_template"], eos_token="", bos_token=""
        )
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        assert template(messages=chat).prompt == prompt
        answer = llama.create_chat_completion(chat, temperature=0, max_tokens=32)["choices"][0]
        assert answer["finish_reason"] == "stop"


def test_beginning_tokens_are_added_where_the_tokenizer_adds_them(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    edit_json(base / "tokenizer_config.json", bos_token="<|im_start|>")
    spec = json.loads((base / "tokenizer.json").read_text())
    first = {"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}
    spec["post_processor"] |= {
        "single": [first, {"Sequence": {"id": "A", "type_id": 0}}],
        "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
    }
    (base / "tokenizer.json").write_text(json.dumps(spec))
    for llama in _open(_write(tmp_path, base, adapter)):
        assert llama.token_bos() == 1
        assert llama.tokenize(b"hello", add_bos=True)[0] == 1

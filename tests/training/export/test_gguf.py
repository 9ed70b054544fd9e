"""GGUF files hold the merged model, so that others than its writer read the same from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs import embedded
from tests.training.export.build import LLAMA3_ROPE, edit_json, save_adapter, save_base
from training.export.checkpoint import Checkpoint
from training.export.errors import ExportError, ExportRefused
from training.export.gguf_file import GgufModel, Quantisation
from training.export.gguf_shape import ROPE_FACTORS
from training.export.gguf_vocab import Vocabulary, for_inference, pre_tokenizer_name
from training.export.merge import Merge
from training.export.models import dequantised_model

TOKENS = torch.arange(3, 43)[None]
WORST = {"f16": 2e-3, "q8_0": 0.05}


def _plan(base: Path, adapter: Path, quantisation: Quantisation = "f16") -> GgufModel:
    return GgufModel.plan(Merge.plan(Checkpoint.open(base), adapter), quantisation, {"name": "a@1"})


def _write(folder: Path, base: Path, adapter: Path, quantisation: Quantisation) -> Path:
    model = _plan(base, adapter, quantisation)
    file = folder / f"{quantisation}.gguf"
    model.write(file, lambda _done, _total: None)
    model.read_back(file)
    return file


def _logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model.eval()(input_ids=TOKENS).logits


@pytest.mark.parametrize("quantisation", ["f16", "q8_0"])
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("llama", {}),
        ("llama", {"tie_word_embeddings": True, "rope_parameters": LLAMA3_ROPE}),
        ("qwen2", {}),
        ("qwen2", {"tie_word_embeddings": True}),
    ],
    ids=["llama", "llama3-tied", "qwen2", "qwen2-tied"],
)
def test_transformers_reads_the_merged_model_from_the_file(
    tmp_path: Path, kind: str, config: dict[str, Any], quantisation: Quantisation
) -> None:
    base = save_base(tmp_path / "base", kind=kind, **config)
    adapter = save_adapter(tmp_path / "adapter", base)
    file = _write(tmp_path, base, adapter, quantisation)
    read = dequantised_model(file, base, 0).load()
    together = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter))
    wanted = _logits(together)
    assert float((_logits(read) - wanted).norm() / wanted.norm()) < WORST[quantisation]


def test_the_file_tells_what_llama_cpp_needs(tmp_path: Path) -> None:
    file = _write(tmp_path, embedded.BASE, embedded.ADAPTERS / "legal-agent", "q8_0")
    fields = {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}
    config = json.loads((embedded.BASE / "config.json").read_text())
    told = {name.removeprefix("qwen2."): value for name, value in fields.items() if name.startswith("qwen2.")}
    assert fields["general.architecture"] == "qwen2"
    assert told["context_length"] == config["max_position_embeddings"]
    assert told["embedding_length"] == config["hidden_size"]
    assert told["block_count"] == config["num_hidden_layers"]
    assert told["feed_forward_length"] == config["intermediate_size"]
    assert told["attention.head_count"] == config["num_attention_heads"]
    assert told["attention.head_count_kv"] == config["num_key_value_heads"]
    assert told["rope.freq_base"] == config["rope_parameters"]["rope_theta"]
    assert told["attention.layer_norm_rms_epsilon"] == pytest.approx(config["rms_norm_eps"])
    tokenizer = AutoTokenizer.from_pretrained(embedded.BASE)
    tokens = fields["tokenizer.ggml.tokens"]
    assert tokens == tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    assert fields["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert not fields["tokenizer.ggml.add_bos_token"]
    controls = [token for token, kind in zip(tokens, fields["tokenizer.ggml.token_type"], strict=True) if kind == 3]
    assert set(controls) == {token.content for token in tokenizer.added_tokens_decoder.values() if token.special}


def test_a_damaged_file_is_noticed(tmp_path: Path) -> None:
    file = _write(tmp_path, embedded.BASE, embedded.ADAPTERS / "legal-agent", "f16")
    tensor = next(each for each in gguf.GGUFReader(file).tensors if each.name == "blk.1.ffn_up.weight")
    with file.open("r+b") as damaged:
        damaged.seek(tensor.data_offset)
        damaged.write(np.random.default_rng(0).normal(size=20_000).astype(np.float16).tobytes())
    with pytest.raises(ExportError, match=r"blk\.1\.ffn_up\.weight was read back with an error"):
        _plan(embedded.BASE, embedded.ADAPTERS / "legal-agent").read_back(file)


def test_rotary_factors_are_those_of_transformers(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", rope_parameters=LLAMA3_ROPE)
    file = _write(tmp_path, base, save_adapter(tmp_path / "adapter", base), "f16")
    factors = next(tensor.data for tensor in gguf.GGUFReader(file).tensors if tensor.name == ROPE_FACTORS)
    rotary = AutoModelForCausalLM.from_pretrained(base).model.rotary_emb
    plain = LLAMA3_ROPE["rope_theta"] ** -(np.arange(0, 16, 2) / 16)
    np.testing.assert_allclose(plain / factors, rotary.inv_freq.numpy(), rtol=1e-5)


def test_embedding_rows_without_a_token_are_filled(tmp_path: Path) -> None:
    vocabulary = Vocabulary.of(embedded.BASE, 3080)
    assert len(vocabulary.tokens) == len(vocabulary.types) == 3080
    assert set(vocabulary.types[3072:]) == {int(gguf.TokenType.UNUSED)}
    with pytest.raises(ExportRefused, match="only 3000 rows"):
        Vocabulary.of(embedded.BASE, 3000)


QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
ONLY_BYTES = BYTES | {"use_regex": False}


def _split(pattern: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}


@pytest.mark.parametrize(
    ("steps", "model", "name"),
    [
        ([BYTES], {}, "gpt-2"),
        ([{"type": "Digits", "individual_digits": True}, BYTES], {}, "smollm"),
        ([_split(QWEN2), ONLY_BYTES], {"ignore_merges": False}, "qwen2"),
        ([_split(QWEN2.replace(r"\p{N}| ?", r"\p{N}{1,3}| ?")), ONLY_BYTES], {"ignore_merges": True}, "llama-bpe"),
    ],
)
def test_the_splitting_rule_is_found_by_what_it_does(
    steps: list[dict[str, Any]], model: dict[str, Any], name: str
) -> None:
    spec = {"model": {"type": "BPE"} | model, "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps}}
    assert pre_tokenizer_name(spec) == name


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"model": {"type": "BPE", "byte_fallback": True}}, "byte-level BPE"),
        ({"model": {"type": "Unigram"}}, "byte-level BPE"),
        ({"model": {"type": "BPE"}, "normalizer": {"type": "Lowercase"}, "pre_tokenizer": BYTES}, "Lowercase"),
        ({"model": {"type": "BPE"}, "pre_tokenizer": _split(r"\d+")}, "no name"),
        ({"model": {"type": "BPE"}, "pre_tokenizer": BYTES | {"add_prefix_space": True}}, "no name"),
    ],
)
def test_tokenizers_that_llama_cpp_would_run_otherwise_are_refused(spec: dict[str, Any], reason: str) -> None:
    with pytest.raises(ExportRefused, match=reason):
        pre_tokenizer_name(spec)


def test_the_chat_template_says_the_same_without_its_training_tags() -> None:
    tokenizer: Any = AutoTokenizer.from_pretrained(embedded.BASE)
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    plain = for_inference(tokenizer.chat_template)
    assert "generation" not in plain.replace("add_generation_prompt", "")
    for prompt in (True, False):
        said = [
            tokenizer.apply_chat_template(chat, chat_template=each, tokenize=False, add_generation_prompt=prompt)
            for each in (tokenizer.chat_template, plain)
        ]
        assert said[0] == said[1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"architectures": ["MambaForCausalLM"]}, "MambaForCausalLM"),
        ({"use_sliding_window": True}, "sliding-window"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "longrope"),
        ({"hidden_act": "gelu"}, "gelu"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    edit_json(base / "config.json", **changes)
    with pytest.raises(ExportRefused, match=reason):
        _plan(base, adapter)

"""The merged model says what base and adapter say together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from configs import embedded
from tests.training.export.build import edit_json, save_adapter, save_base
from training.export.checkpoint import Checkpoint
from training.export.errors import ExportError, ExportRefused
from training.export.merge import Merge
from training.export.merged import Dtype, merged_bytes, write_merged

TOKENS = torch.arange(3, 43)[None]


def _merge(base: Path, adapter: Path, folder: Path, dtype: Dtype = "bf16") -> Path:
    folder.mkdir()
    write_merged(Merge.plan(Checkpoint.open(base), adapter), folder, dtype, lambda _done, _total: None)
    return folder


def _logits(folder: Path, adapter: Path | None = None) -> torch.Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.inference_mode():
        return model.eval()(input_ids=TOKENS).logits


def _distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


def test_the_embedded_base_merged_has_the_logits_of_base_and_adapter(tmp_path: Path) -> None:
    adapter = embedded.ADAPTERS / "legal-agent"
    merged = _merge(embedded.BASE, adapter, tmp_path / "merged")
    together = _logits(embedded.BASE, adapter)
    assert _distance(_logits(merged), together) < 0.02
    assert _distance(_logits(embedded.BASE), together) > 0.1
    assert AutoTokenizer.from_pretrained(merged).chat_template
    assert (merged / "generation_config.json").is_file()


@pytest.mark.parametrize(
    "config",
    [
        {"use_rslora": True},
        {"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"layers.1.self_attn.q_proj": 32}},
        {"target_modules": "all-linear", "lora_alpha": 3},
    ],
    ids=["rslora", "patterns", "all-linear"],
)
def test_scales_are_those_of_peft(tmp_path: Path, config: dict[str, Any]) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base, **config)
    merged = _merge(base, adapter, tmp_path / "merged", "fp16")
    assert _distance(_logits(merged), _logits(base, adapter)) < 0.01


def test_shards_stay_as_the_base_has_them(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", max_shard_size="200KB")
    adapter = save_adapter(tmp_path / "adapter", base)
    merged = _merge(base, adapter, tmp_path / "merged")
    shards = sorted(file.name for file in base.glob("*.safetensors"))
    assert len(shards) > 1
    assert sorted(file.name for file in merged.glob("*.safetensors")) == shards
    assert _distance(_logits(merged), _logits(base, adapter)) < 0.01
    sizes = sum(file.stat().st_size for file in merged.glob("*.safetensors"))
    assert 0 < sizes - merged_bytes(Checkpoint.open(base)) < 20_000


def test_fp16_refuses_numbers_that_it_cannot_hold(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base, lora_alpha=10_000_000)
    with pytest.raises(ExportError, match="export as bf16"):
        _merge(base, adapter, tmp_path / "merged", "fp16")
    assert _merge(base, adapter, tmp_path / "wide")


def test_other_tensors_keep_their_numbers(tmp_path: Path) -> None:
    merged = _merge(embedded.BASE, embedded.ADAPTERS / "legal-agent", tmp_path / "merged")
    name = "model.norm.weight"
    with (
        safe_open(merged / "model.safetensors", "pt") as now,
        safe_open(embedded.BASE / "model.safetensors", "pt") as was,
    ):
        assert now.keys() == was.keys()
        assert torch.equal(now.get_tensor(name), was.get_tensor(name))


def test_a_quantised_base_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    edit_json(base / "config.json", quantization_config={"quant_method": "awq"})
    with pytest.raises(ExportRefused, match=r"quantised \(awq\).*--base"):
        Checkpoint.open(base)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    with pytest.raises(ExportRefused, match="maps"):
        Merge.plan(Checkpoint.open(base), embedded.ADAPTERS / "legal-agent")


def test_transposed_layers_are_refused(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    adapter = save_adapter(tmp_path / "adapter", base)
    edit_json(adapter / "adapter_config.json", fan_in_fan_out=True)
    with pytest.raises(ExportRefused, match="fan_in_fan_out"):
        Merge.plan(Checkpoint.open(base), adapter)

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapters_registry import BaseModelSpec, SourceError
from tests.adapters_registry.build import MODULES, Tensors, save_safetensors, write_base


@pytest.mark.parametrize("sharded", [False, True])
def test_reads_the_shapes_of_linear_layers(sharded: bool, tmp_path: Path) -> None:
    spec = BaseModelSpec.from_folder(write_base(tmp_path / "base", sharded=sharded), "tiny", max_lora_rank=8)
    assert dict(spec.module_shapes) == MODULES
    assert spec.max_lora_rank == 8
    assert spec.answers_to(str(tmp_path / "base"))


def test_reads_headers_only(tmp_path: Path) -> None:
    """A sparse file of a terabyte stands for a large model."""
    folder = write_base(tmp_path / "base")
    size = 1 << 40
    header = json.dumps({"model.up_proj.weight": {"dtype": "F32", "shape": [1 << 19, 1 << 19],
                                                  "data_offsets": [0, size]}}).encode()  # fmt: skip
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + size)
    assert BaseModelSpec.from_folder(folder, "large").module_shapes == {"model.up_proj": (1 << 19, 1 << 19)}


def test_understands_packed_weights(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    packed: Tensors = {
        "awq.qweight": ("I32", (32, 8), bytes(1024)),
        "awq.scales": ("F16", (1, 64), bytes(128)),
        "gptq.qweight": ("I32", (4, 64), bytes(1024)),
        "gptq.scales": ("F16", (1, 64), bytes(128)),
        "gptq.g_idx": ("I32", (32,), bytes(128)),
        "bnb.weight": ("U8", (1024, 1), bytes(1024)),
        "ct.weight_packed": ("I32", (64, 4), bytes(1024)),
    }
    save_safetensors(folder / "model.safetensors", packed)
    shapes = BaseModelSpec.from_folder(folder, "quantised").module_shapes
    assert shapes == {"awq": (64, 32), "gptq": (64, 32), "bnb": (0, 0), "ct": (64, 0)}


def test_finds_layers_of_multimodal_checkpoints(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    (folder / "config.json").write_text(json.dumps({"text_config": {}}))
    name = "model.language_model.layers.0.mlp.up_proj"
    save_safetensors(folder / "model.safetensors", {f"{name}.weight": ("BF16", (4, 2), bytes(16))})
    spec = BaseModelSpec.from_folder(folder, "vl")
    for path in (name, "model.layers.0.mlp.up_proj", "language_model.model.layers.0.mlp.up_proj"):
        assert spec.shape_of(path) == (4, 2)
    for path in ("model.layers.1.mlp.up_proj", "layers.0.mlp.up_proj", "visual.layers.0.mlp.up_proj"):
        assert spec.shape_of(path) is None


@pytest.mark.parametrize("path", ["layers.0.mlp.up_proj", "model.language_model.layers.0.mlp.up_proj", "model.model.x"])
def test_layers_of_a_plain_model_have_one_path(path: str, tmp_path: Path) -> None:
    spec = BaseModelSpec.from_folder(write_base(tmp_path / "base"), "tiny")
    assert spec.shape_of("model.layers.0.mlp.up_proj") is not None
    assert spec.shape_of(path) is None


@pytest.mark.parametrize("damage", ["config.json", "model.safetensors"])
def test_a_folder_that_is_no_model(damage: str, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    (folder / damage).write_bytes(b"noise")
    with pytest.raises(SourceError, match=damage):
        BaseModelSpec.from_folder(folder, "tiny")
    (folder / damage).unlink()
    with pytest.raises(SourceError):
        BaseModelSpec.from_folder(folder, "tiny")


def test_an_index_cannot_name_files_elsewhere(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base", sharded=True)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(SourceError, match="outside"):
        BaseModelSpec.from_folder(folder, "tiny")

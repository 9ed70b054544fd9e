from __future__ import annotations

import json
import random
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from adapters_registry import AdapterRegistry
from adapters_registry.digest import digest_of, write_canonical
from adapters_registry.peft_config import read_config
from adapters_registry.validation import check_adapter, choose_base
from adapters_registry.weights import read_header
from tests.adapters_registry.build import PREFIX, Tensors, lora_tensors, peft_config, save_safetensors, write_adapter


def digest(base: Any, source: Path) -> str:
    with TemporaryDirectory() as folder, (source / "adapter_model.safetensors").open("rb") as weights:
        config, header = read_config((source / "adapter_config.json").read_bytes()), read_header(weights)
        adapter = check_adapter(config, header, choose_base({base.name: base}, None, config, header))
        found, size = write_canonical(adapter, weights, Path(folder), lambda done, total: None)
        assert size == sum(file.stat().st_size for file in Path(folder).iterdir())
        assert digest_of(Path(folder)) == found
    return found


COSMETIC = {
    "auto_mapping": {"base_model_class": "Qwen2"},
    "base_model_name_or_path": "tiny-base",
    "fan_in_fan_out": True,
    "inference_mode": False,
    "init_lora_weights": "gaussian",
    "layers_to_transform": [0, 1],
    "lora_alpha": 8.0,
    "lora_dropout": 0.5,
    "peft_version": "0.99",
    "revision": "main",
    "target_modules": "all-linear",
    "use_dora": None,
}


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    order=st.randoms(use_true_random=False),
    cosmetic=st.sets(st.sampled_from(sorted(COSMETIC))),
    metadata=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    prefixed=st.booleans(),
)
def test_the_digest_depends_on_content_alone(
    base: Any, order: random.Random, cosmetic: set[str], metadata: dict[str, str], prefixed: bool
) -> None:
    tensors = list(lora_tensors().items())
    order.shuffle(tensors)
    with TemporaryDirectory() as folder:
        plain = write_adapter(Path(folder) / "plain")
        other = Path(folder) / "other"
        other.mkdir()
        named: Tensors = {name if prefixed else name.removeprefix(PREFIX): tensor for name, tensor in tensors}
        save_safetensors(other / "adapter_model.safetensors", named, metadata)
        config = list(peft_config(**{key: COSMETIC[key] for key in cosmetic}).items())
        order.shuffle(config)
        (other / "adapter_config.json").write_text(json.dumps(dict(config), indent=3))
        assert digest(base, plain) == digest(base, other)


@pytest.mark.parametrize("change", [{"lora_alpha": 16}, {"lora_alpha": 8.5}, {"use_rslora": True}, {"r": 8}])
def test_what_the_engine_computes_changes_the_digest(base: Any, change: dict[str, Any], tmp_path: Path) -> None:
    plain = write_adapter(tmp_path / "plain")
    assert digest(base, plain) != digest(base, write_adapter(tmp_path / "other", **change))


def test_one_bit_changes_the_digest(base: Any, tmp_path: Path) -> None:
    plain, other = write_adapter(tmp_path / "plain"), write_adapter(tmp_path / "other")
    weights = bytearray((other / "adapter_model.safetensors").read_bytes())
    weights[-4] ^= 1
    (other / "adapter_model.safetensors").write_bytes(weights)
    assert digest(base, plain) != digest(base, other)


def test_dtype_changes_the_digest(base: Any, tmp_path: Path) -> None:
    f16 = write_adapter(tmp_path / "f16", tensors=lora_tensors(dtype="F16"))
    bf16 = write_adapter(tmp_path / "bf16", tensors=lora_tensors(dtype="BF16"))
    assert digest(base, f16) != digest(base, bf16)


def test_folder_and_archive_are_the_same_version(registry: AdapterRegistry, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    with zipfile.ZipFile(tmp_path / "adapter.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README.md", "hello")
        archive.write(folder / "adapter_model.safetensors", "adapter_model.safetensors")
        archive.write(folder / "adapter_config.json", "adapter_config.json")
    first = registry.register("legal", folder)
    assert registry.register("legal", tmp_path / "adapter.zip") == first
    assert len(registry.list_versions()) == 1


def test_stored_is_exactly_what_engines_read(registry: AdapterRegistry, tmp_path: Path) -> None:
    mixed = lora_tensors(modules=("q_proj",), dtype="BF16") | lora_tensors(modules=("v_proj",), dtype="F32")
    source = write_adapter(tmp_path / "adapter", tensors=mixed)
    (source / "tokenizer.json").write_text("{}")
    (source / "adapter_model.bin").write_bytes(b"pickle")
    version = registry.register("legal", source)
    assert sorted(file.name for file in version.path.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert version.digest == version.path.name
    with safe_open(version.path / "adapter_model.safetensors", framework="numpy") as stored:
        assert set(stored.keys()) == set(mixed)
        name = f"{PREFIX}model.layers.0.self_attn.v_proj.lora_A.weight"
        assert stored.get_tensor(name).tobytes() == mixed[name][2]


def test_stored_numbers_equal_the_source(registry: AdapterRegistry, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "adapter", 5)
    stored = load_file(registry.register("legal", source).path / "adapter_model.safetensors")
    for name, array in load_file(source / "adapter_model.safetensors").items():
        np.testing.assert_array_equal(stored[name], array)


def test_a_source_that_shrinks_while_it_is_read_is_refused(registry: AdapterRegistry, tmp_path: Path) -> None:
    module = f"{PREFIX}model.layers.0.self_attn.q_proj"
    big: Tensors = {
        f"{module}.lora_A.weight": ("F32", (1 << 16, 16), bytes(1 << 22)),
        f"{module}.lora_B.weight": ("F32", (16, 1 << 16), bytes(1 << 22)),
    }
    source = write_adapter(tmp_path / "adapter", tensors=big, r=1 << 16)
    weights = source / "adapter_model.safetensors"

    def cut(step: str, done: int, total: int | None) -> None:
        if step == "checking" and weights.stat().st_size > 5 << 20:
            with weights.open("r+b") as file:
                file.truncate(5 << 20)

    wide = AdapterRegistry(registry._database, tmp_path / "home", bases={"r": _roomy()})
    with pytest.raises(Exception, match="shrank") as caught:
        wide.register("legal", source, progress=cut)
    assert caught.value.code == "weights_corrupt"  # type: ignore[attr-defined]
    assert wide.list_versions() == ()


def _roomy() -> Any:
    from adapters_registry import BaseModelSpec

    return BaseModelSpec("r", ("acme/Tiny-Base",), max_lora_rank=1 << 20)

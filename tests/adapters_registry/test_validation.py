from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters_registry import AdapterInvalid, AdapterRegistry, BaseModelSpec, Database
from tests.adapters_registry.build import MODULES, PREFIX, Tensors, lora_tensors, write_adapter

Q0 = f"{PREFIX}model.layers.0.self_attn.q_proj"


def add(name: str, dtype: str, shape: tuple[int, ...], data: bytes) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.update({name: (dtype, shape, data)})


def drop(name: str) -> Callable[[Tensors], None]:
    return lambda tensors: tensors.pop(name) and None


def poison(dtype: str, number: bytes) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        replaced = lora_tensors(dtype=dtype)
        kind, shape, data = replaced[f"{Q0}.lora_B.weight"]
        replaced[f"{Q0}.lora_B.weight"] = (kind, shape, data[: -len(number)] + number)
        tensors |= replaced

    return change


def refused(registry: AdapterRegistry, source: Path, **options: Any) -> AdapterInvalid:
    """The refusal, after making sure that it had no effect."""
    with pytest.raises(AdapterInvalid) as caught:
        registry.register("legal", source, **options)
    assert registry.list_versions() == ()
    assert registry.snapshot().revision == 0
    home = source.parent / "home"
    assert [path for path in home.rglob("*") if path.is_file() and path.name != "publish.lock"] == []
    assert "\n" not in caught.value.message
    return caught.value


CONFIGS = {
    "not_lora": ({"peft_type": "IA3"}, "IA3"),
    "dora": ({"use_dora": True}, "DoRA"),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "lm_head"),
    "bias": ({"bias": "lora_only"}, "bias"),
    "bias lora_bias": ({"lora_bias": True}, "bias"),
    "trainable_tokens": ({"trainable_token_indices": [1, 2]}, "token"),
    "init_unsupported pissa": ({"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
    "init_unsupported olora": ({"init_lora_weights": "olora"}, "olora"),
    "init_unsupported loftq": ({"init_lora_weights": "loftq"}, "loftq"),
    "init_unsupported corda": ({"init_lora_weights": "corda"}, "corda"),
    "init_unsupported list": ({"init_lora_weights": ["gaussian"]}, "gaussian"),
    "unsupported_feature qalora": ({"use_qalora": True}, "QA-LoRA"),
    "unsupported_feature bdlora": ({"use_bdlora": {"nblocks": 2}}, "block-diagonal"),
    "unsupported_feature alora": ({"alora_invocation_tokens": [5]}, "activated"),
    "unsupported_feature layers": ({"layer_replication": [[0, 2]]}, "layer replication"),
    "unsupported_feature parameters": ({"target_parameters": ["mlp.experts.down_proj"]}, "target_parameters"),
    "unsupported_feature megatron": ({"megatron_config": {"a": 1}}, "Megatron"),
    "unsupported_feature kasa": ({"kasa_config": {"beta": 1}}, "KaSA"),
    "unsupported_feature unknown": ({"use_next_years_trick": True}, "use_next_years_trick"),
    "config_malformed rank": ({"r": "4"}, "rank"),
    "config_malformed rank true": ({"r": True}, "rank"),
    "config_malformed rank zero": ({"r": 0}, "rank"),
    "config_malformed alpha": ({"lora_alpha": None}, "lora_alpha"),
    "config_malformed alpha nan": ({"lora_alpha": float("nan")}, "finite"),
    "config_malformed base": ({"base_model_name_or_path": 7}, "base_model_name_or_path"),
    "config_malformed pattern": ({"rank_pattern": [1]}, "rank_pattern"),
    "patterns_unsupported": ({"alpha_pattern": {"q_proj": 32}}, "alpha_pattern"),
    "patterns_unsupported regex": ({"rank_pattern": {"(a+)+$": 4}}, "module names"),
    "rank_mismatch": ({"r": 8, "tensors": lora_tensors(rank=4)}, "rank 8"),
    "rank_too_large": ({"r": 32}, "max_lora_rank of 16"),
    "wrong_base": ({"base_model_name_or_path": "Qwen/Qwen2.5-7B"}, "'tiny-base'"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_refuses_config(case: str, registry: AdapterRegistry, tmp_path: Path) -> None:
    changes, words = CONFIGS[case]
    error = refused(registry, write_adapter(tmp_path / "adapter", **{"r": 4, **changes}))
    assert error.code == case.split(" ", maxsplit=1)[0]
    assert words in error.message


TENSORS: dict[str, tuple[Callable[[Tensors], None], str]] = {
    "no_weights": (lambda tensors: tensors.clear(), "no LoRA weights"),
    "incomplete_pair": (drop(f"{Q0}.lora_B.weight"), "lora_B"),
    "unknown_tensor": (add(f"{Q0}.lora_C.weight", "F32", (1, 1), bytes(4)), "lora_C"),
    "unknown_tensor adapter name": (add(f"{Q0}.lora_A.default.weight", "F32", (1, 1), bytes(4)), "default"),
    "unknown_tensor twice": (
        add(f"{Q0.removeprefix(PREFIX)}.lora_A.weight", "F32", (4, 16), bytes(256)),
        "twice",
    ),
    "dora": (add(f"{Q0}.lora_magnitude_vector", "F32", (16,), bytes(64)), "DoRA"),
    "bias": (add(f"{Q0}.lora_B.bias", "F32", (16,), bytes(64)), "bias"),
    "embedding_lora": (add(f"{PREFIX}model.embed_tokens.lora_embedding_A", "F32", (4, 64), bytes(1024)), "embeddings"),
    "embedding_lora head": (add(f"{PREFIX}lm_head.lora_A.weight", "F32", (4, 16), bytes(256)), "output head"),
    "resized_embeddings": (
        add(f"{PREFIX}model.embed_tokens.base_layer.weight", "F32", (65, 16), bytes(65 * 64)),
        "embed_tokens",
    ),
    "resized_embeddings saved": (add(f"{PREFIX}lm_head.weight", "F32", (64, 16), bytes(4096)), "lm_head"),
    "dtype_unsupported": (add(f"{Q0}.lora_A.weight", "I8", (4, 16), bytes(64)), "I8"),
    "dtype_unsupported double": (add(f"{Q0}.lora_A.weight", "F64", (4, 16), bytes(512)), "F64"),
    "wrong_shape empty": (add(f"{Q0}.lora_A.weight", "F32", (4, 0), b""), "above zero"),
    "wrong_shape 3d": (add(f"{Q0}.lora_A.weight", "F32", (4, 4, 4), bytes(256)), "two dimensions"),
    "wrong_shape in": (add(f"{Q0}.lora_A.weight", "F32", (4, 12), bytes(192)), "12 to 16"),
    "wrong_shape out": (add(f"{Q0}.lora_B.weight", "F32", (20, 4), bytes(320)), "16 to 20"),
    "not_finite f32 nan": (poison("F32", struct.pack("<f", float("nan"))), "NaN"),
    "not_finite f32 inf": (poison("F32", struct.pack("<f", float("-inf"))), "NaN or infinite"),
    "not_finite f16": (poison("F16", b"\x00\x7c"), "q_proj"),
    "not_finite bf16 nan": (poison("BF16", b"\xc0\x7f"), "q_proj"),
    "not_finite bf16 inf": (poison("BF16", b"\x80\xff"), "q_proj"),
}


@pytest.mark.parametrize("case", TENSORS)
def test_refuses_tensors(case: str, registry: AdapterRegistry, tmp_path: Path) -> None:
    change, words = TENSORS[case]
    error = refused(registry, write_adapter(tmp_path / "adapter", change=change))
    assert error.code == case.split(" ", maxsplit=1)[0]
    assert words in error.message


def test_refuses_modules_that_the_base_lacks(registry: AdapterRegistry, tmp_path: Path) -> None:
    tensors = {name.replace("layers.1", "layers.7"): tensor for name, tensor in lora_tensors().items()}
    error = refused(registry, write_adapter(tmp_path / "adapter", tensors=tensors))
    assert error.code == "unknown_module"
    assert "model.layers.7.self_attn.q_proj" in error.message


def entry(begin: int, end: int, *, dtype: str = "F32", shape: tuple[int, ...] = (2, 2)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def raw(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


CORRUPT = {
    "empty": b"",
    "short": b"\x05\x00\x00",
    "huge header": (1 << 62).to_bytes(8, "little") + b"{}",
    "header past the end": (100).to_bytes(8, "little") + b"{}",
    "not json": raw(b"not json"),
    "not utf-8": raw(b"\xff\xfe"),
    "deep json": raw(b"[" * 100_000),
    "a list": raw([1]),
    "entry": raw({"a": {"dtype": "F32"}}),
    "type": raw({"a": entry(0, 16, dtype="F33")}, bytes(16)),
    "negative": raw({"a": entry(-16, 0)}, bytes(16)),
    "boolean shape": raw({"a": entry(0, 4, shape=(True, True))}, bytes(4)),
    "size": raw({"a": entry(0, 12)}, bytes(12)),
    "overlap": raw({"a": entry(0, 16), "b": entry(8, 24)}, bytes(24)),
    "gap": raw({"a": entry(0, 16), "b": entry(20, 36)}, bytes(36)),
    "truncated": raw({"a": entry(0, 16)}, bytes(8)),
    "trailing": raw({"a": entry(0, 16)}, bytes(20)),
    "twice": raw(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],'
                 b'"data_offsets":[0,4]}}', bytes(4)),
}  # fmt: skip


@pytest.mark.parametrize("case", CORRUPT)
def test_refuses_corrupt_weights(case: str, registry: AdapterRegistry, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    (folder / "adapter_model.safetensors").write_bytes(CORRUPT[case])
    assert refused(registry, folder).code == "weights_corrupt"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{", "config_malformed"),
        (b"[]", "config_malformed"),
        (b"[" * 100_000, "config_malformed"),
        (b"\xff\xff", "config_malformed"),
        (b" " * ((1 << 20) + 1), "config_too_large"),
    ],
)
def test_refuses_broken_config_files(content: bytes, code: str, registry: AdapterRegistry, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    (folder / "adapter_config.json").write_bytes(content)
    assert refused(registry, folder).code == code


def test_refuses_pickles_and_missing_files(registry: AdapterRegistry, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter")
    weights = (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert refused(registry, folder).code == "pickle_weights"
    assert refused(registry, weights).code == "pickle_weights"
    weights.unlink()
    assert refused(registry, folder).code == "weights_missing"
    (folder / "adapter_config.json").unlink()
    assert refused(registry, folder).code == "config_missing"


@pytest.mark.parametrize(
    "name",
    ["", "Legal", "-legal", ".legal", "a/b", "../etc", "a..b", "a b", "ä", "a\n", "a\0", "x" * 65, "auto", "none",
     "tiny-base"],
)  # fmt: skip
def test_refuses_names(name: str, registry: AdapterRegistry, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "adapter")
    with pytest.raises(AdapterInvalid) as caught:
        registry.register(name, source)
    assert (caught.value.code, caught.value.param) == ("bad_name", "name")
    if name != "tiny-base":
        with pytest.raises(AdapterInvalid) as caught:
            registry.register("legal", source, agent=name)
        assert (caught.value.code, caught.value.param) == ("bad_name", "agent")
    assert registry.list_versions() == ()


@pytest.mark.parametrize(
    "recorded",
    ["acme/Tiny-Base", "ACME/TINY-BASE", "tiny-base", "/models/tiny-base/", "elsewhere/Tiny-Base", "", None,
     "/cache/hub/models--acme--Tiny-Base/snapshots/0123abcd"],
)  # fmt: skip
def test_understands_how_adapters_record_their_base(
    recorded: str | None, registry: AdapterRegistry, tmp_path: Path
) -> None:
    adapter = write_adapter(tmp_path / "adapter", base_model_name_or_path=recorded)
    assert registry.register("legal", adapter).base == "tiny-base"


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("modules", [("q_proj",), ("q_proj", "down_proj"), tuple(name for name in MODULES)])
def test_accepts_plain_lora(dtype: str, modules: tuple[str, ...], registry: AdapterRegistry, tmp_path: Path) -> None:
    source = write_adapter(tmp_path / "adapter", tensors=lora_tensors(modules=modules, dtype=dtype), use_rslora=True)
    version = registry.register("legal", source)
    assert version.rank == 4
    assert set(version.target_modules) == {name.rsplit(".", 1)[-1] for name in MODULES if name.endswith(modules)}
    assert json.loads((version.path / "adapter_config.json").read_bytes())["use_rslora"] is True


@pytest.mark.parametrize("init", [True, False, None, "gaussian", "eva", "orthogonal"])
def test_accepts_inits_that_leave_the_base_alone(
    init: bool | str | None, registry: AdapterRegistry, tmp_path: Path
) -> None:
    assert registry.register("legal", write_adapter(tmp_path / "adapter", init_lora_weights=init)).rank == 4


def with_base(database: Database, home: Path, *bases: BaseModelSpec) -> AdapterRegistry:
    return AdapterRegistry(database, home, bases={base.name: base for base in bases})


def test_patterns_are_kept_where_the_engine_honours_them(
    database: Database, base: BaseModelSpec, tmp_path: Path
) -> None:
    tensors = lora_tensors(modules=("q_proj",), rank=4) | lora_tensors(modules=("v_proj",), rank=8)
    source = write_adapter(tmp_path / "a", tensors=tensors, rank_pattern={"v_proj": 8}, alpha_pattern={"v_proj": 32})
    registry = with_base(database, tmp_path / "home", replace(base, per_module_scaling=True))
    version = registry.register("legal", source)
    config = json.loads((version.path / "adapter_config.json").read_bytes())
    values = {f"model.layers.{layer}.self_attn.v_proj" for layer in (0, 1)}
    assert version.rank == 8
    assert config["rank_pattern"] == dict.fromkeys(values, 8)
    assert config["alpha_pattern"] == dict.fromkeys(values, 32)


def test_patterns_that_change_nothing_do_not_matter(registry: AdapterRegistry, tmp_path: Path) -> None:
    plain = registry.register("plain", write_adapter(tmp_path / "a"))
    patterned = registry.register("patterned", write_adapter(tmp_path / "b", rank_pattern={"q_proj": 4, "gone": 9}))
    every = registry.register("every", write_adapter(tmp_path / "c", lora_alpha=1, alpha_pattern={
        "q_proj": 8, "v_proj": 8}))  # fmt: skip
    assert plain.digest == patterned.digest == every.digest


def test_every_spelling_of_a_pattern_is_the_same_version(
    database: Database, base: BaseModelSpec, tmp_path: Path
) -> None:
    """Also one whose own rank no module has: above the engine's, it would be refused there."""
    registry = with_base(database, tmp_path / "home", replace(base, per_module_scaling=True))
    tensors = lora_tensors(modules=("q_proj", "k_proj"), rank=4) | lora_tensors(modules=("v_proj",), rank=8)
    spellings: list[dict[str, Any]] = [
        {"r": 4, "rank_pattern": {"v_proj": 8}},
        {"r": 8, "rank_pattern": {"q_proj": 4, "k_proj": 4}},
        {"r": 64, "rank_pattern": {"q_proj": 4, "self_attn\\.k_proj$": 4, "v_proj": 8}},
        {"r": 4, "rank_pattern": {"^model.layers.0.self_attn.v_proj": 8, "layers.1.self_attn.v_proj": 8}},
    ]
    found = [
        registry.register("legal", write_adapter(tmp_path / f"{index}", tensors=tensors, **spelling))
        for index, spelling in enumerate(spellings)
    ]
    assert {version.digest for version in found} == {found[0].digest}
    config = json.loads((found[0].path / "adapter_config.json").read_bytes())
    assert (config["r"], set(config["rank_pattern"].values())) == (4, {8})


def test_an_anchored_pattern_means_whole_paths(database: Database, base: BaseModelSpec, tmp_path: Path) -> None:
    registry = with_base(database, tmp_path / "home", replace(base, per_module_scaling=True))
    plain = registry.register("legal", write_adapter(tmp_path / "a"))
    anchored = write_adapter(tmp_path / "b", alpha_pattern={"^q_proj": 32})
    assert registry.register("legal", anchored).digest == plain.digest


def test_rank_of_a_pattern_counts(database: Database, base: BaseModelSpec, tmp_path: Path) -> None:
    tensors = lora_tensors(modules=("q_proj",), rank=4) | lora_tensors(modules=("v_proj",), rank=32)
    source = write_adapter(tmp_path / "a", tensors=tensors, rank_pattern={"v_proj": 32})
    registry = with_base(database, tmp_path / "home", replace(base, per_module_scaling=True))
    assert refused(registry, source).code == "rank_too_large"


def test_a_base_of_unknown_shapes_checks_names_and_consistency(
    database: Database, base: BaseModelSpec, tmp_path: Path
) -> None:
    remote = BaseModelSpec("remote", ("acme/Tiny-Base",), max_lora_rank=16)
    registry = with_base(database, tmp_path / "home", remote)
    assert refused(registry, write_adapter(tmp_path / "a", base_model_name_or_path=None)).code == "wrong_base"
    assert (
        refused(registry, write_adapter(tmp_path / "a", change=drop(f"{Q0}.lora_A.weight"))).code == "incomplete_pair"
    )
    assert registry.register("legal", write_adapter(tmp_path / "a")).base == "remote"


class TestChoiceOfBase:
    @pytest.fixture
    def two(self, database: Database, base: BaseModelSpec, tmp_path: Path) -> AdapterRegistry:
        wide = {name: (2 * out, 2 * inside) for name, (out, inside) in base.module_shapes.items()}
        return with_base(database, tmp_path / "home", base, BaseModelSpec("wide", ("acme/wide",), wide))

    def test_by_recorded_name(self, two: AdapterRegistry, tmp_path: Path) -> None:
        assert two.register("legal", write_adapter(tmp_path / "a")).base == "tiny-base"

    def test_by_shapes(self, two: AdapterRegistry, tmp_path: Path) -> None:
        assert two.register("legal", write_adapter(tmp_path / "a", base_model_name_or_path=None)).base == "tiny-base"

    def test_named_by_the_caller_is_still_checked(self, two: AdapterRegistry, tmp_path: Path) -> None:
        source = write_adapter(tmp_path / "a")
        assert refused(two, source, base="wide").code == "wrong_base"
        assert refused(two, source, base="huge").code == "unknown_base"
        unnamed = write_adapter(tmp_path / "b", base_model_name_or_path=None)
        assert refused(two, unnamed, base="wide").code == "wrong_shape"

    def test_ambiguous(self, database: Database, base: BaseModelSpec, tmp_path: Path) -> None:
        registry = with_base(database, tmp_path / "home", base, replace(base, name="twin"))
        error = refused(registry, write_adapter(tmp_path / "a"))
        assert error.code == "ambiguous_base"
        assert "tiny-base, twin" in error.message
        assert registry.register("legal", write_adapter(tmp_path / "a"), base="twin").base == "twin"

    def test_nothing_served(self, database: Database, tmp_path: Path) -> None:
        registry = with_base(database, tmp_path / "home")
        assert refused(registry, write_adapter(tmp_path / "a")).code == "unknown_base"

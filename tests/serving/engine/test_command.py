import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from configs import embedded
from configs.profiles import KERNELS, load_profile
from configs.settings import EngineSettings, SettingsError
from serving.engine.command import (
    EXTENSION,
    SPARE_SLOTS,
    TUNED_KERNELS,
    build_command,
    loads_at_once,
    render,
    socket_path,
    vllm_arguments,
)
from serving.engine.model import BaseModel
from serving.engine.worker.protocol import StagingPlan

RUN_DIR = Path("/run/here")
PREPARED = Path("/home/here/prepared")


def command_of(settings: EngineSettings, profile: str = "cpu", environ: dict[str, str] | None = None) -> list[str]:
    model = BaseModel.of(settings).argument
    return list(build_command(settings, load_profile(profile), model, RUN_DIR, environ or {}, prepared=PREPARED).argv)


def env_of(settings: EngineSettings, profile: str = "cpu", environ: dict[str, str] | None = None) -> dict[str, str]:
    model = BaseModel.of(settings).argument
    return dict(build_command(settings, load_profile(profile), model, RUN_DIR, environ or {}, prepared=PREPARED).env)


def test_the_cpu_cache_holds_as_many_adapters_as_there_are_slots() -> None:
    argv = command_of(EngineSettings(name="base", slots=7, max_lora_rank=64))
    assert {"--max-loras=7", "--max-cpu-loras=7", "--max-lora-rank=64", "--enable-lora"} <= set(argv)
    assert f"--uds={socket_path(RUN_DIR)}" in argv
    assert f"--model={embedded.BASE}" in argv
    assert "--served-model-name=loradock-tiny" in argv


def test_a_users_argument_overrides_the_profiles_in_either_spelling() -> None:
    argv = command_of(EngineSettings(name="base", args={"--kv-cache-memory-bytes": 5, "dtype": "bfloat16"}))
    assert "--kv-cache-memory-bytes=5" in argv
    assert [word for word in argv if word.startswith("--dtype")] == ["--dtype=bfloat16"]


@pytest.mark.parametrize(
    "given",
    [
        {"cudagraph_capture_sizes": [1, 2]},
        {"max-cudagraph-capture-size": 64},
        {"compilation_config": {"max_cudagraph_capture_size": 64}},
        {"compilation_config": '{"max_cudagraph_capture_size": 64}'},
        {"compilation-config.max-cudagraph-capture-size": 64},
    ],
)
def test_a_users_sizes_of_graphs_displace_the_profiles(given: dict[str, Any]) -> None:
    settings = EngineSettings(name="base", args=given)
    arguments = vllm_arguments(settings, load_profile("h200"), "model", RUN_DIR)
    assert arguments.get("cudagraph_capture_sizes") == given.get("cudagraph_capture_sizes")
    assert arguments["max_num_batched_tokens"] == 2048


def test_the_profiles_sizes_of_graphs_reach_to_a_whole_step() -> None:
    settings = EngineSettings(name="base", args={"compilation_config": {"mode": 3}})
    arguments = vllm_arguments(settings, load_profile("h200"), "model", RUN_DIR)
    sizes = arguments["cudagraph_capture_sizes"]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == arguments["max_num_batched_tokens"]


def test_without_staging_vllm_is_as_it_comes() -> None:
    argv = command_of(EngineSettings(name="base", host_bytes=7))
    assert argv[6] == "-"
    assert not [word for word in argv if "worker-extension-cls" in word]


def test_the_profile_says_whether_adapters_are_staged_unless_it_is_set() -> None:
    assert command_of(EngineSettings(name="base"), "gpu")[6] != "-"
    assert command_of(EngineSettings(name="base", staging=False), "gpu")[6] == "-"


def test_with_staging_one_more_adapter_may_come_early() -> None:
    argv = command_of(EngineSettings(name="base", slots=7, staging=True))
    assert {"--max-loras=8", "--max-cpu-loras=8", f"--worker-extension-cls={EXTENSION}"} <= set(argv)


def test_what_may_be_kept_of_adapters_is_the_profiles_unless_it_is_set() -> None:
    settings = EngineSettings(name="base", staging=True, host_bytes=7)
    plan = msgspec.json.decode(command_of(settings)[6], type=StagingPlan)
    profile = load_profile("cpu")
    notices = str(RUN_DIR / "notices.sock")
    assert plan == StagingPlan(str(PREPARED), 7, profile.prepared_bytes, SPARE_SLOTS, loads_at_once(), notices)


@pytest.mark.parametrize(("cores", "loads"), [(1, 1), (2, 1), (8, 2), (16, 4), (64, 4)])
def test_on_few_cores_adapters_are_loaded_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, cores: int, loads: int
) -> None:
    monkeypatch.setattr("serving.engine.command.usable_cores", lambda: cores)
    assert loads_at_once() == loads


@pytest.mark.parametrize("name", ["port", "uds", "--max-loras", "enable-lora", "served_model_name", "api-key", "model"])
def test_arguments_that_loradock_decides_are_refused(name: str) -> None:
    with pytest.raises(SettingsError, match="set by loradock"):
        command_of(EngineSettings(name="base", args={name: 1}))


def test_arguments_become_words() -> None:
    arguments = {"a_b": True, "c": False, "d": None, "e": {"f": 1}, "g": ["h", 2], "i": "-j", "k": 0}
    assert render(arguments) == ["--a-b", "--no-c", "--e", '{"f": 1}', "--g", "h", "2", "--i=-j", "--k=0"]


def test_what_would_open_or_lock_the_engine_does_not_reach_it() -> None:
    environ = {
        "VLLM_API_KEY": "secret",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "LORADOCK_PORT": "1",
        "HTTP_PROXY": "kept",
    }
    env = env_of(EngineSettings(name="base"), environ=environ)
    assert not env.keys() & {"VLLM_API_KEY", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "LORADOCK_PORT"}
    assert env["HTTP_PROXY"] == "kept"
    assert env["VLLM_NO_USAGE_STATS"] == "1"


def test_a_local_model_needs_no_hub_and_a_hub_model_does() -> None:
    assert env_of(EngineSettings(name="base"))["HF_HUB_OFFLINE"] == "1"
    assert "HF_HUB_OFFLINE" not in env_of(EngineSettings(name="base", model="org/model"))


def test_threads_are_bounded_unless_the_user_says_otherwise() -> None:
    settings = EngineSettings(name="base")
    assert int(env_of(settings)["OMP_NUM_THREADS"]) >= 1
    assert env_of(settings, environ={"OMP_NUM_THREADS": "13"})["OMP_NUM_THREADS"] == "13"
    assert env_of(settings, "gpu")["OMP_NUM_THREADS"] == "1"


H100 = ("NVIDIA H100 80GB HBM3",)


@pytest.mark.parametrize("gpu", [*H100, "NVIDIA H200"])
def test_a_gpus_lora_kernels_are_tuned_unless_the_user_has_other_files(
    monkeypatch: pytest.MonkeyPatch, gpu: str
) -> None:
    monkeypatch.setattr("serving.engine.command.nvidia_gpus", lambda environ: (gpu,))
    settings = EngineSettings(name="base")
    assert env_of(settings, "gpu")[TUNED_KERNELS] == str(KERNELS)
    assert TUNED_KERNELS not in env_of(settings)
    assert env_of(settings, "gpu", {TUNED_KERNELS: "/mine"})[TUNED_KERNELS] == "/mine"


def test_other_gpus_keep_vllms_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.engine.command.nvidia_gpus", lambda environ: ("NVIDIA A100-SXM4-80GB",))
    assert TUNED_KERNELS not in env_of(EngineSettings(name="base"), "gpu")


@pytest.mark.parametrize("file", sorted(KERNELS.glob("*.json")), ids=lambda file: file.stem)
def test_tuned_kernels_have_what_vllm_reads(file: Path) -> None:
    wanted = {"block_m", "block_n", "block_k", "num_warps", "num_ctas", "num_stages"}
    wanted |= {"split_k"} if file.stem.endswith("SHRINK") else set()
    for by_slices in json.loads(file.read_text()).values():
        assert set(by_slices) == {str(slices) for slices in range(1, 9)}, "vLLM fails on a number that is missing"
        for by_tokens in by_slices.values():
            for by_inputs in by_tokens.values():
                for by_outputs in by_inputs.values():
                    assert all(wanted <= set(config) for config in by_outputs.values())


def test_a_folder_that_is_missing_or_holds_no_model_is_told_before_any_start(tmp_path: Path) -> None:
    missing = BaseModel.of(EngineSettings(name="base", model=str(tmp_path / "none")))
    assert "does not exist" in (missing.obstacle() or "")
    assert missing.folder is None
    empty = BaseModel.of(EngineSettings(name="base", model=str(tmp_path)))
    assert "config.json" in (empty.obstacle() or "")
    (tmp_path / "config.json").write_text("{}")
    assert empty.obstacle() is None
    assert empty.folder == tmp_path
    assert {str(tmp_path), tmp_path.name} <= set(empty.aliases)


def test_a_hub_model_is_named_by_its_id_and_has_no_folder_before_it_is_fetched() -> None:
    model = BaseModel.of(EngineSettings(name="base", model="org-nobody/model", base_aliases=("old",)))
    assert (model.local, model.obstacle(), model.folder) == (False, None, None)
    assert {"org-nobody/model", "model", "old"} <= set(model.aliases)

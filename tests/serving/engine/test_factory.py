from pathlib import Path

import pytest

from configs import embedded
from configs.settings import EngineSettings, Settings, SettingsError
from serving.engine import hardware
from serving.engine.factory import build_engines
from serving.engine.hardware import nvidia_gpus, profile_for, resolve_profile
from serving.engine.process import VllmEngine


def test_engines_keep_the_order_of_their_tiers(tmp_path: Path) -> None:
    settings = Settings(
        home=tmp_path,
        engines=(
            EngineSettings(name="small", profile="cpu", slots=2),
            EngineSettings(name="large", kind="openai", url="http://127.0.0.1:9", model="big", cost_per_mtok=3.0),
        ),
    )
    small, large = build_engines(settings, {})
    assert (small.base_name, small.slots, small.model_path) == (embedded.BASE_NAME, 2, embedded.BASE)
    assert (large.base_name, large.slots, large.cost_per_mtok) == ("big", 0, 3.0)


def test_the_shorthand_names_a_profile(tmp_path: Path) -> None:
    (engine,) = build_engines(Settings(home=tmp_path, engine="cpu"), {})
    assert isinstance(engine, VllmEngine)
    assert engine.log_path == tmp_path / "logs" / "engine-base.log"
    with pytest.raises(SettingsError, match="unknown engine profile 'tpu'"):
        build_engines(Settings(home=tmp_path, engine="tpu"), {})


def test_a_missing_key_or_a_reserved_argument_is_told_when_engines_are_built(tmp_path: Path) -> None:
    upstream = EngineSettings(name="far", kind="openai", url="http://127.0.0.1:9", model="m", api_key_env="NOPE")
    with pytest.raises(SettingsError, match="NOPE"):
        build_engines(Settings(home=tmp_path, engines=(upstream,)), {})
    ours = EngineSettings(name="base", profile="cpu", args={"port": 1})
    with pytest.raises(SettingsError, match=r"args\.port"):
        build_engines(Settings(home=tmp_path, engines=(ours,)), {})


@pytest.mark.parametrize(
    ("gpus", "profile"),
    [((), "cpu"), (("NVIDIA H200",), "h200"), (("NVIDIA L4", "NVIDIA H200"), "gpu"), (("Tesla T4",), "gpu")],
)
def test_the_profile_follows_the_machine(gpus: tuple[str, ...], profile: str) -> None:
    assert profile_for(gpus) == profile


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        (None, ("NVIDIA L4", "NVIDIA H200")),
        ("", ()),
        ("-1", ()),
        ("1", ("NVIDIA H200",)),
        ("1,0", ("NVIDIA H200", "NVIDIA L4")),
        ("GPU-8932f937", ("NVIDIA L4", "NVIDIA H200")),
        ("7", ()),
    ],
)
def test_hidden_gpus_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None, seen: tuple[str, ...]
) -> None:
    for number, name in enumerate(("NVIDIA L4", "NVIDIA H200")):
        folder = tmp_path / f"0000:0{number}:00.0"
        folder.mkdir()
        (folder / "information").write_text(f"Model: \t\t {name}\nIRQ:   \t\t 1\n")
    monkeypatch.setattr(hardware, "PROC", tmp_path)
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert nvidia_gpus(environ) == seen
    assert resolve_profile("gpu", environ) == "gpu"

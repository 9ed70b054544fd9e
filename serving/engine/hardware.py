"""What this machine has to run an engine on, found without importing torch."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from configs.profiles import AUTO

PROC = Path("/proc/driver/nvidia/gpus")
SMI_TIMEOUT_S = 20


def resolve_profile(name: str, environ: Mapping[str, str]) -> str:
    """`name`, or for `auto` the profile that suits the machine."""
    return profile_for(nvidia_gpus(environ)) if name == AUTO else name


def profile_for(gpus: tuple[str, ...]) -> str:
    """The profile that suits GPUs with these names."""
    if not gpus:
        return "cpu"
    return "h200" if "H200" in gpus[0] else "gpu"


def nvidia_gpus(environ: Mapping[str, str]) -> tuple[str, ...]:
    """Names of the NVIDIA GPUs that a process may use, those hidden by CUDA_VISIBLE_DEVICES left out."""
    names = _from_proc() or _from_smi()
    visible = environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return names
    chosen = [part.strip() for part in visible.split(",")]
    if not chosen[0] or chosen[0].startswith("-"):
        return ()
    if all(part.isdigit() for part in chosen):
        return tuple(names[int(part)] for part in chosen if int(part) < len(names))
    return names


def _from_proc() -> tuple[str, ...]:
    texts = (file.read_text(encoding="utf-8") for file in sorted(PROC.glob("*/information")))
    found = (re.search(r"^Model:\s*(.+?)\s*$", text, re.MULTILINE) for text in texts)
    return tuple(match[1] for match in found if match)


def _from_smi() -> tuple[str, ...]:
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return ()
    try:
        listed = subprocess.run(  # noqa: S603 - the program found on PATH, with constant arguments
            [smi, "--query-gpu=name", "--format=csv,noheader"],
            check=False,
            capture_output=True,
            text=True,
            timeout=SMI_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return tuple(line.strip() for line in listed.stdout.splitlines() if line.strip()) if listed.returncode == 0 else ()

"""What a host has to train on, and which job gets which part of it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

QUERY = ("--query-gpu=index,uuid,memory.total,memory.free", "--format=csv,noheader,nounits")
ASK_S = 20.0
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Gpu:
    """One card. `index` is nvidia-smi's; `free_bytes` what nobody uses now, engines included."""

    index: int
    total_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class Needs:
    """What a job asks for: cards, and bytes on each; without a number it wants cards that no other job uses."""

    gpus: int = 0
    gpu_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Held:
    """What a running job holds."""

    gpus: tuple[int, ...]
    gpu_bytes: int | None


class Wait(Enum):
    """Why a job cannot start here now."""

    BUSY = "other jobs or the engine hold what it needs"
    NEVER = "this machine has too few or too small GPUs"


@dataclass(frozen=True, slots=True)
class Capacity:
    """A host: its cards, and how many jobs may run on its processors at once."""

    gpus: tuple[Gpu, ...] = ()
    cpu_jobs: int = 1

    def place(self, needs: Needs, held: Sequence[Held]) -> tuple[int, ...] | Wait:
        """The cards for a job that needs `needs` beside `held`; none of them for a job on processors."""
        if not self.gpus or needs.gpus == 0:
            running = sum(not each.gpus for each in held)
            return () if running < self.cpu_jobs else Wait.BUSY
        fitting = [gpu for gpu in self.gpus if (needs.gpu_bytes or 0) <= gpu.total_bytes]
        if len(fitting) < needs.gpus:
            return Wait.NEVER
        free = [gpu for gpu in fitting if _has_room(gpu, needs.gpu_bytes, held)]
        if len(free) < needs.gpus:
            return Wait.BUSY
        # the fullest that fit, so that a larger job finds room later
        free.sort(key=lambda gpu: (gpu.free_bytes, gpu.index))
        return tuple(sorted(gpu.index for gpu in free[: needs.gpus]))


def _has_room(gpu: Gpu, wanted: int | None, held: Sequence[Held]) -> bool:
    here = [each for each in held if gpu.index in each.gpus]
    if wanted is None:
        return not here
    if any(each.gpu_bytes is None for each in here):
        return False
    # a job that has just begun has not taken all that it will
    promised = gpu.total_bytes - sum(each.gpu_bytes or 0 for each in here)
    return wanted <= min(promised, gpu.free_bytes)


def probe(cpu_jobs: int, environ: Mapping[str, str] | None = None) -> Capacity:
    """Ask nvidia-smi for the cards that CUDA_VISIBLE_DEVICES leaves us; none where it is missing or fails."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return Capacity((), cpu_jobs)
    try:
        asked = subprocess.run((program, *QUERY), capture_output=True, text=True, timeout=ASK_S, check=True)  # noqa: S603 - fixed arguments
    except (OSError, subprocess.SubprocessError):
        return Capacity((), cpu_jobs)
    visible = (os.environ if environ is None else environ).get("CUDA_VISIBLE_DEVICES")
    return Capacity(parse(asked.stdout, visible), cpu_jobs)


def parse(answer: str, visible: str | None = None) -> tuple[Gpu, ...]:
    """The cards in nvidia-smi's answer; `visible` lists the indices or UUIDs that may be used, None for all."""
    allowed = None if visible is None else {each.strip() for each in visible.split(",") if each.strip()}
    cards = []
    for line in answer.splitlines():
        index, uuid, total, free = (part.strip() for part in line.split(",", 3))
        if allowed is None or index in allowed or any(uuid.startswith(each) for each in allowed if len(each) > 4):
            cards.append(Gpu(int(index), int(total) * MIB, int(free) * MIB))
    return tuple(cards)

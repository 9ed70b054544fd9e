"""The trainer as a process of its own: started in the job's folder, watched, stopped, found again after kill -9."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from training.jobs.errors import Hopeless, Interrupted, StepFailed
from training.jobs.processes import end_group, start_time

CONFIG, STATUS, RESULT, LOG, PID = "config.json", "training-status.json", "result.json", "trainer.log", "trainer.pid"
GRACE_S = 30.0
"""time for the checkpoint that a trainer writes when it is told to stop"""
POLL_S = 0.2
USAGE = 2
"""exit status of a trainer whose configuration is wrong: trying again is vain"""
TAIL_BYTES = 8192
SPINS = "10000"
"""turns that a thread of OpenMP waits before it sleeps, some 0.1 ms. A small base's steps are thousands of short loops,
and a sleep after each halves their speed; longer ones would take turns from what serves"""
GUARD = Path(__file__).with_name("guard.py")
"""run as a file: the package around it takes longer to import than a trainer's first look"""


class Watch(Protocol):
    """What a running trainer's owner does at each look: may raise Interrupted to stop it."""

    def __call__(self, status: Mapping[str, Any]) -> None:
        """`status` is what the trainer last said."""
        ...


@dataclass(frozen=True)
class TrainerCommand:
    """How the trainer is run, and how long it may take to stop."""

    argv: tuple[str, ...] = (sys.executable, "-m", "training.trainer")
    grace_s: float = GRACE_S


def run_trainer(folder: Path, gpus: tuple[int, ...], watch: Watch, command: TrainerCommand) -> dict[str, Any]:
    """Train as `folder`/config.json says, from the last checkpoint on if there is one; what the result file holds.

    `watch` is called a few times a second; what it raises stops the trainer first. Raises StepFailed.
    """
    end_left_behind(folder, command.grace_s)
    if (result := read_json(folder / RESULT)) is not None:
        return result
    process = _start(folder, gpus, command)
    try:
        while (code := _look(process, lambda: watch(read_json(folder / STATUS) or {}))) is None:
            continue
    except BaseException:
        _stop(process, command.grace_s)
        raise
    finally:
        if process.stdin is not None:
            process.stdin.close()
        (folder / PID).unlink(missing_ok=True)
    result = read_json(folder / RESULT)
    if code == 0 and result is not None:
        return result
    raise _failure(folder, code)


def end_left_behind(folder: Path, grace_s: float = GRACE_S) -> bool:
    """End a trainer that an earlier worker started here and did not end; whether there was one."""
    known = read_json(folder / PID)
    return known is not None and end_group(int(known["pid"]), int(known["started"]), grace_s)


def read_json(file: Path) -> dict[str, Any] | None:
    """The object in `file`; None if it is not there, or half written."""
    try:
        value = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write the object, all of it or nothing."""
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    temporary.replace(file)


def _start(folder: Path, gpus: tuple[int, ...], command: TrainerCommand) -> subprocess.Popen[bytes]:
    guard = (sys.executable, "-P", str(GUARD), str(command.grace_s))
    with (folder / LOG).open("ab") as log:
        process = subprocess.Popen(  # noqa: S603 - our own command
            (*guard, *command.argv, str(folder)),
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=_environ(gpus),
            start_new_session=True,
        )
    write_json(folder / PID, {"pid": process.pid, "started": start_time(process.pid) or 0})
    return process


def _environ(gpus: tuple[int, ...]) -> dict[str, str]:
    return {
        **os.environ,
        "CUDA_VISIBLE_DEVICES": ",".join(map(str, gpus)),
        "CUDA_DEVICE_ORDER": "PCI_BUS_ID",  # so that numbers mean what nvidia-smi says
        "GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPINS),
        "KMP_BLOCKTIME": os.environ.get("KMP_BLOCKTIME", "1"),  # LLVM's OpenMP: the least wait that is one, in ms
    }


def _look(process: subprocess.Popen[bytes], watch: Callable[[], None]) -> int | None:
    """Wait a moment, then let the owner look; the exit status once there is one."""
    try:
        return process.wait(POLL_S)
    except subprocess.TimeoutExpired:
        watch()
        return None


def _stop(process: subprocess.Popen[bytes], grace_s: float) -> None:
    process.terminate()
    deadline = time.monotonic() + grace_s
    while process.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_S / 4)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failure(folder: Path, code: int) -> Exception:
    told = (read_json(folder / STATUS) or {}).get("error")
    reason = str(told) if told else _last_line(folder / LOG) or "it wrote no reason"
    if code == USAGE:
        return Hopeless(reason, "training_refused")
    if code == 0:
        return Interrupted("the trainer stopped before its end")
    return StepFailed(f"training failed (exit status {code}): {reason}", "training_failed")


def _last_line(log: Path) -> str:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")

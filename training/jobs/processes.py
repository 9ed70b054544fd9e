"""Processes by number and birth: a number alone may mean another process by now."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

START_FIELD = 19
"""of /proc/PID/stat behind the name: clock ticks between the boot and the start"""


PROC = Path("/proc")


def start_time(pid: int) -> int | None:
    """When the process began, in the kernel's ticks; None if there is none (or it has ended and is not reaped).

    Where the kernel does not tell, 0 for any that runs.
    """
    if not (PROC / "self").exists():
        return _zero_if_running(pid)
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {"Z", "X"} else int(fields[START_FIELD])


def _zero_if_running(pid: int) -> int | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return 0


def is_running(pid: int, started: int) -> bool:
    """Whether the process that began then still runs."""
    return start_time(pid) == started


def end_group(pid: int, started: int, grace_s: float) -> bool:
    """End the process group of a leader that began then: SIGTERM, SIGKILL after the grace. False if it is gone."""
    if not is_running(pid, started):
        return False
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while is_running(pid, started) and time.monotonic() < deadline:
        time.sleep(0.05)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    return True

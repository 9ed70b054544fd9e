"""Child processes of a benchmark: started with a log, watched, measured, and never left behind."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import NoReturn, Self

from bench.environment import ROOT

PROC = Path("/proc")
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0


class ChildFailed(RuntimeError):
    """A process ended or did not come up; the message holds the end of its log."""


class Child:
    """A process in a session of its own, its output in `log`. A context manager: leaving it ends the whole session.

    With `announces`, stdout is kept for `first_line`, and must not get more than a few lines.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        env: Mapping[str, str] | None = None,
        cwd: Path = ROOT,
        announces: bool = False,
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if announces else output,
                stderr=output,
                env=dict(env) if env is not None else None,
                cwd=cwd,
                start_new_session=True,
            )
        self.pid = self._process.pid

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, _leave)  # by default a process ends at once, and leaves its children
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
        kill(_session_members(self.pid))
        if self._process.stdout is not None:
            self._process.stdout.close()

    def first_line(self, timeout_s: float = START_TIMEOUT_S) -> str:
        """What the process prints first, which for our own servers is their URL. Raises ChildFailed."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline().decode().strip() if ready else ""
        if not line:
            raise self.failed("printed nothing")
        return line

    def running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """How it ended, as `subprocess` tells it; None while it runs."""
        return self._process.poll()

    def failed(self, what: str) -> ChildFailed:
        """An error that shows the end of the log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return ChildFailed("\n".join([f"{self.log.stem} {what}", *lines[-20:]]))

    def cpu_seconds(self) -> float | None:
        """Processor time of the process and its living descendants so far; None where there is no /proc."""
        return cpu_seconds(self.pid)

    def stop(self, number: int = signal.SIGTERM, timeout_s: float = STOP_TIMEOUT_S) -> float:
        """Ask the process group to end, as Ctrl-C does with SIGINT, then make it. Returns the seconds that it took."""
        started = time.monotonic()
        if not self.running():
            return 0.0
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
        return time.monotonic() - started


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    """End by way of every context that is open."""
    sys.exit(128 + number)


def started_with(value: str) -> list[int]:
    """Living processes that have `value` in their environment, whatever session they are in; empty without /proc."""
    found = []
    for folder in PROC.glob("[0-9]*"):
        with suppress(OSError):  # gone, or another user's
            if value.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def kill(pids: Iterable[int]) -> None:
    """End processes at once; those that are gone do not matter."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _session_members(session: int) -> list[int]:
    """Living processes of a session."""
    members = []
    for folder in PROC.glob("[0-9]*"):
        fields = _stat(int(folder.name))
        if fields and int(fields[3]) == session and fields[0] != "Z":
            members.append(int(folder.name))
    return members


def cpu_seconds(pid: int) -> float | None:
    """User and system time of `pid` and its living descendants; None where there is no /proc."""
    if not PROC.is_dir():
        return None
    ticks = 0
    for member in tree(pid):
        if fields := _stat(member):
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    """A port on loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def tree(pid: int) -> list[int]:
    """`pid` and its living descendants."""
    found = [pid]
    for member in found:
        for children in (PROC / str(member) / "task").glob("*/children"):
            with suppress(OSError):
                found.extend(map(int, children.read_text(encoding="ascii").split()))
    return found


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the command's name, state first; None once the process is gone."""
    try:
        return (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None

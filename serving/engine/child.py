"""One life of an engine's process: its group, its folder, its lifeline, its log."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from serving.engine.command import Command

MAX_SOCKET_PATH = 100
LOG_BYTES = 32 << 20
LOG_KEPT = 1 << 20


class EngineProcess:
    """A started process. Its standard input is a pipe that nobody writes to: when it closes, the whole group dies."""

    def __init__(self, process: asyncio.subprocess.Process, run_dir: Path) -> None:
        self._process = process
        self._run_dir = run_dir

    @classmethod
    async def spawn(cls, command: Command, run_dir: Path, log: Path) -> EngineProcess:
        """Start `command` in a session of its own, its output appended to `log`. Raises OSError."""
        with log.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                *command.argv,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env=dict(command.env),
                cwd="/",
                start_new_session=True,
            )
        return cls(process, run_dir)

    @property
    def pid(self) -> int:
        """Process id, and id of the group."""
        return self._process.pid

    @property
    def exited(self) -> bool:
        """Whether the process has ended; its children may not have."""
        return self._process.returncode is not None

    async def wait(self) -> int:
        """The exit status; negative for a signal."""
        return await self._process.wait()

    async def end(self, grace_s: float) -> None:
        """Ask the process to end, kill its whole group after `grace_s` seconds at most, clear its folder."""
        try:
            if grace_s > 0 and not self.exited:
                with contextlib.suppress(ProcessLookupError):
                    self._process.terminate()
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._process.wait(), grace_s)
        finally:
            self._kill()
            await self._process.wait()

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if self._process.stdin is not None:
            self._process.stdin.close()
        shutil.rmtree(self._run_dir, ignore_errors=True)


def make_run_dir() -> Path:
    """A private folder whose name is short enough for a unix socket."""
    parent = tempfile.gettempdir()
    folder = Path(tempfile.mkdtemp(prefix="loradock-", dir=parent if len(parent) < MAX_SOCKET_PATH // 2 else "/tmp"))  # noqa: S108 - mkdtemp makes it private
    folder.chmod(0o700)
    return folder


def rotate(log: Path) -> None:
    """Keep the log of the start before as `<name>.1`."""
    if log.exists():
        log.replace(log.with_name(log.name + ".1"))


def bound(log: Path) -> None:
    """Once `log` exceeds its bound, keep its end alone. The engine goes on appending to the same file."""
    if log.stat().st_size <= LOG_BYTES:
        return
    with log.open("r+b") as file:
        file.seek(-LOG_KEPT, os.SEEK_END)
        end = file.read()
        log.with_name(log.name + ".1").write_bytes(end)
        file.truncate(0)

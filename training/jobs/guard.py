"""A small process between a worker and its trainer, so that no trainer outlives the worker that started it.

    python guard.py GRACE_SECONDS COMMAND...

Its standard input is a pipe that nobody writes to. When that closes, however the worker ended, the trainer gets
SIGTERM, and after the grace its whole process group SIGKILL. SIGTERM is passed on; the exit status is the trainer's.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

POLL_S = 0.1
FROM_SIGNAL = 128
AUTOGROUP = Path("/proc/self/autogroup")


def main(arguments: list[str]) -> int:
    """Run the command; its exit status, 128 + N for signal N."""
    grace_s, command = float(arguments[0]), arguments[1:]
    with contextlib.suppress(OSError):  # niceness counts within a session only, where Linux groups by session
        AUTOGROUP.write_text(str(os.nice(0)))
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - the worker's own command

    def pass_on(number: int, _frame: FrameType | None) -> None:
        child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    while child.poll() is None:
        if select.select([sys.stdin], [], [], POLL_S)[0]:
            _end(child, grace_s)
            break
    code = child.wait()
    return code if code >= 0 else FROM_SIGNAL - code


def _end(child: subprocess.Popen[bytes], grace_s: float) -> None:
    child.terminate()
    deadline = time.monotonic() + grace_s
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(POLL_S)
    os.killpg(os.getpgid(0), signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""What the gateway and the engine's process agree on: exit codes, marked lines in the log, paths."""

from __future__ import annotations

import sys

import msgspec

EXIT_CONFIG = 78
"""vLLM refuses its configuration: starting again would end the same way"""
EXIT_ENGINE_DEAD = 70
"""the engine core died; nothing more can be answered"""

PHASE = "loradock: phase "
"""begins a log line that names the phase of the start"""
ERROR = "loradock: error "
"""begins a log line that tells in one line why the start cannot succeed"""

IMPORTING, CONFIGURING, STARTING_CORE, STARTING_SERVER = "import", "configure", "core", "server"

PENDING, READY, FAILED = "pending", "ready", "failed"
"""how far a worker is with an adapter"""

STAGING = "loradock: staging "
"""begins a log line that tells whether adapters are staged beside the engine, or why they are not"""

LOAD_PATH = "/loradock/adapters/load"
PREFETCH_PATH = "/loradock/adapters/prefetch"
UNLOAD_PATH = "/loradock/adapters/unload"
STATUS_PATH = "/loradock/status"


class StagingPlan(msgspec.Struct, frozen=True):
    """Where and how much the engine's process may keep of adapters.

    `folder` is for prepared adapters, at most `disk_bytes` of them; `host_bytes` of memory are pinned; `spare` slots
    beyond those that are told let an adapter come before another has gone; `loads` adapters at a time are on their way
    to slots; `notices` is the path of a socket to be.
    """

    folder: str
    host_bytes: int
    disk_bytes: int
    spare: int
    loads: int
    notices: str


def tell(line: str) -> None:
    """Write a marked line into the log, at once and whole."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()

"""Entry of the engine's process. Standard input is a lifeline: when it closes, the whole process group is killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec

from serving.engine.worker import protocol

GUARD = 'read -r _; kill -KILL "-$1"; rm -rf -- "$2"'
"""waits for the gateway's end of the pipe to close, however it closes, then ends the group and clears its folder"""


def main(argv: list[str]) -> int:
    """Serve vLLM with `argv`: RUN_DIR, `preload` or `-`, a StagingPlan in JSON or `-`, then vLLM's own arguments."""
    run_dir, preload, plan, *arguments = argv
    start_guard(Path(run_dir))
    protocol.tell(protocol.PHASE + protocol.IMPORTING)
    if preload == "preload":
        preload_engine()
    from serving.engine.worker.server import serve

    staging = None if plan == "-" else msgspec.json.decode(plan, type=protocol.StagingPlan)
    return serve(arguments, staging, fork_server=preload == "preload")


def start_guard(run_dir: Path) -> None:
    """Start the process that outlives us and ends whatever we leave.

    It is a shell of its own session holding our standard input, so neither SIGKILL of the gateway nor of this process
    leaves an engine behind, vLLM's own children included.
    """
    subprocess.Popen(  # noqa: S603 - a constant script, its arguments apart
        ["/bin/sh", "-c", GUARD, "loradock-guard", str(os.getpgrp()), str(run_dir)],
        stdin=sys.stdin.fileno(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
        shell=False,
    )
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, sys.stdin.fileno())
    os.close(null)


def preload_engine() -> None:
    """Let a fork server import what the engine core needs while this process imports its own part."""
    import multiprocessing
    from multiprocessing import forkserver

    multiprocessing.set_forkserver_preload(["vllm.v1.engine.core", "vllm.v1.worker.cpu_worker"])
    forkserver.ensure_running()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

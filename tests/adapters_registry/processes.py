"""Processes that share a registry with the test.

They are forked from a server that has imported what they need, because a fresh Python takes a second to do so.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["pytest", "fsspec.implementations.http", "tests.adapters_registry.victim"])


def start(work: Callable[..., None], *arguments: object) -> tuple[BaseProcess, Connection]:
    """Run `work(pipe, *arguments)` in a process; `pipe` is the other end of the connection that is returned."""
    ours, theirs = FORKS.Pipe()
    process = FORKS.Process(target=work, args=(theirs, *arguments))
    process.start()
    theirs.close()
    return process, ours


def finish(process: BaseProcess, pipe: Connection) -> int:
    """Wait for the end, for at most a minute, and return the exit code (negative for a signal)."""
    process.join(60)
    pipe.close()
    code = process.exitcode
    if code is None:
        process.kill()
        process.join()
    process.close()
    assert code is not None, "the process hung"
    return code

"""Processes of ours that Ctrl-C leaves alone: it reaches the whole group, and the parent decides when they end."""

from __future__ import annotations

import signal
from multiprocessing import resource_tracker
from multiprocessing.process import BaseProcess

INTERRUPT = frozenset({signal.SIGINT})


def start_shielded(process: BaseProcess) -> None:
    """Start `process` with SIGINT blocked, so that it survives its imports; its target calls `ignore_interrupt`."""
    resource_tracker.ensure_running()  # the first child starts it, and it leaves the signal unblocked
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPT)
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def ignore_interrupt() -> None:
    """In the child: drop what came so far, and what comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPT)

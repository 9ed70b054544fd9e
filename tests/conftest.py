"""What all tests share."""

from __future__ import annotations

import fcntl
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

if "PYTEST_XDIST_WORKER" in os.environ:
    # Several tests at once, each with a thread for every core, would wait for one another at each matrix product.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in the background deaf to Ctrl+C, and so would be the servers that tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several tests run at once, those on the real engine do not: two engines starve each other."""
    for item in items:
        if item.get_closest_marker("engine") is not None:
            item.add_marker(pytest.mark.xdist_group("engine"))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Where several tests run at once, those marked `alone` do not: they measure what two cores do by themselves."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        return (yield)
    with _turn(exclusive=item.get_closest_marker("alone") is not None):
        return (yield)


@contextmanager
def _turn(*, exclusive: bool) -> Iterator[None]:
    """Be in the room, with others or alone. Who waits to be alone holds the door, so that nobody new comes in."""
    locks = Path(tempfile.gettempdir()) / f"loradock-tests-{os.getuid()}"
    with locks.with_suffix(".door").open("w") as door, locks.with_suffix(".room").open("w") as room:
        fcntl.flock(door, fcntl.LOCK_EX)
        fcntl.flock(room, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        fcntl.flock(door, fcntl.LOCK_UN)
        try:
            yield
        finally:
            fcntl.flock(room, fcntl.LOCK_UN)  # also for a child that was forked meanwhile and lives on

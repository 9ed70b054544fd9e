"""The training worker as a child of the server: started once the engines have settled, replaced when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import time
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess, parent_process
from pathlib import Path

from configs.settings import Settings
from serving.children import ignore_interrupt, start_shielded
from serving.engine.backoff import Backoff

log = logging.getLogger(__name__)

NICENESS = 10
"""of the worker and its trainers"""
SESSION_NICENESS = 19
"""of the worker's session among others; trainers have their own"""
AUTOGROUP = Path("/proc/self/autogroup")
STOP_S = 20.0
"""time for the checkpoints of running trainers; afterwards their guards end them"""


class TrainingProcess:
    """Keeps one worker alive. Belongs to one event loop; `key` lets it in where API keys are needed."""

    def __init__(self, settings: Settings, url: str, key: str) -> None:
        self._settings = settings
        self._url = reachable(url)
        self.key = key
        self._context = multiprocessing.get_context("spawn")  # the parent runs threads and an event loop
        self._process: BaseProcess | None = None
        self._keeper: asyncio.Task[None] | None = None

    def start(self, settled: asyncio.Task[None]) -> None:
        """Begin once `settled` is done: until then the engines need the processors."""
        if self._settings.training.worker:
            self._keeper = asyncio.get_running_loop().create_task(self._keep(settled), name="training worker")

    async def stop(self) -> None:
        """End the worker; its trainers write a checkpoint first."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        if self._process is None:
            return
        self._process.terminate()
        await asyncio.to_thread(self._process.join, STOP_S)
        if self._process.is_alive():
            self._process.kill()

    async def _keep(self, settled: asyncio.Task[None]) -> None:
        await asyncio.wait([settled])
        backoff = Backoff()
        while True:
            began = time.monotonic()
            self._process = self._context.Process(
                target=run_child, args=(self._settings, self._url, self.key), daemon=True, name="loradock-training"
            )
            start_shielded(self._process)
            await _ended(self._process)
            delay_s = backoff.after(time.monotonic() - began)
            log.error("the training worker ended with %s; another in %g s", self._process.exitcode, delay_s)
            await asyncio.sleep(delay_s)


async def _ended(process: BaseProcess) -> None:
    """Return once the process has ended."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(process.sentinel, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(process.sentinel)
    process.join()


def reachable(url: str) -> str:
    """The server's own address as it is called from this machine."""
    return url.replace("://0.0.0.0:", "://127.0.0.1:").replace("://[::]:", "://[::1]:")


def run_child(settings: Settings, url: str, key: str) -> None:
    """The worker's process. It ends with its parent, however that ended."""
    ignore_interrupt()
    _step_back()  # before the imports, which take processor time of those that serve
    from serving.learning import Endpoint, run_worker
    from serving.server import log_to_file

    log_to_file(settings)
    parent = parent_process()
    assert parent is not None  # noqa: S101 - a child has one
    run_worker(settings, Endpoint(url, key), ended=partial(wait, [parent.sentinel]))


def _step_back() -> None:
    """Serve others first. Linux shares processors among sessions before it looks at niceness, so leave the server's."""
    os.nice(NICENESS)
    os.setsid()
    with contextlib.suppress(OSError):
        AUTOGROUP.write_text(str(SESSION_NICENESS))

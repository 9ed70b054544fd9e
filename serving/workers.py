"""Several gateway processes on one port: a parent that keeps the engines, and children that answer."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

from configs.settings import Settings
from serving.children import ignore_interrupt, start_shielded

log = logging.getLogger(__name__)

METRICS_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"
RESPAWN_S = 1.0
"""A worker that died is replaced, at most once in this time."""


@contextlib.contextmanager
def shared_metrics(settings: Settings) -> Iterator[None]:
    """A folder in which all processes count together. Enter before anything imports prometheus_client."""
    if settings.workers == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="loradock-metrics-") as folder:
        os.environ[METRICS_VARIABLE] = folder
        try:
            yield
        finally:
            del os.environ[METRICS_VARIABLE]


class Workers:
    """The children. `listener` is the listening socket that they share; they let `training_key` in."""

    def __init__(self, settings: Settings, listener: socket.socket, control_path: Path, training_key: str) -> None:
        self._settings = settings
        self._training_key = training_key
        self._listener = listener
        self._control_path = control_path
        # Spawned, not forked: the parent runs threads and an event loop.
        self._context = multiprocessing.get_context("spawn")
        self._processes: list[BaseProcess] = []
        self._keeper: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start them, and keep their number."""
        self._processes = [self._spawn() for _ in range(self._settings.workers)]
        self._keeper = asyncio.get_running_loop().create_task(self._keep(), name="worker keeper")

    async def stop(self) -> None:
        """Let their streams end for `shutdown_grace_s`, then end them."""
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        for process in self._processes:
            process.terminate()
        deadline = time.monotonic() + self._settings.shutdown_grace_s + 5
        for process in self._processes:
            await asyncio.to_thread(process.join, max(0.0, deadline - time.monotonic()))
            if process.is_alive():
                process.kill()

    def _spawn(self) -> BaseProcess:
        process = self._context.Process(
            target=run_worker,
            args=(self._settings, self._listener, str(self._control_path), self._training_key),
            daemon=True,
        )
        start_shielded(process)
        return process

    async def _keep(self) -> None:
        from serving.metrics import forget_process as forget_metrics  # not before the folder is set

        while True:
            await asyncio.sleep(RESPAWN_S)
            for index, process in enumerate(self._processes):
                if not process.is_alive():
                    log.error("gateway process %s ended with %s; starting another", process.pid, process.exitcode)
                    forget_metrics(process.pid)  # or its requests in flight would count for ever
                    self._processes[index] = self._spawn()


def run_worker(settings: Settings, listener: socket.socket, control_path: str, training_key: str) -> None:
    """Run one gateway process until SIGTERM or the parent's end."""
    import uvloop

    from serving.server import SWITCH_INTERVAL_S

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    ignore_interrupt()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve_worker(settings, listener, Path(control_path), training_key))


async def _serve_worker(settings: Settings, listener: socket.socket, control_path: Path, training_key: str) -> None:
    import uvicorn

    from serving.auth import TRAINING, KeyRing
    from serving.composition import compose_worker
    from serving.gateway import create_app
    from serving.server import log_to_file, uvicorn_config

    log_to_file(settings)

    def parent_lost() -> None:
        server.should_exit = True

    # The parent has checked the binding; a key file that has gone since must not open the worker that replaces another.
    keys = KeyRing(settings.keys_file, required=not settings.is_loopback)
    keys.admit(training_key, TRAINING)
    gateway = compose_worker(settings, keys, control_path, parent_lost)
    server = uvicorn.Server(uvicorn_config(create_app(gateway), settings))
    await server.serve(sockets=[listener])

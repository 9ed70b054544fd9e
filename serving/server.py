"""`loradock serve`: one process with the endpoint, its engines and their residency, until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import uvicorn
from starlette.types import ASGIApp

from adapters_registry.model import RegistrySnapshot
from configs.settings import Settings, SettingsError
from serving.auth import TRAINING, KeyRing, check_binding
from serving.composition import compose_alone, compose_parent
from serving.engine.base import Engine, EngineState, EngineStatus
from serving.gateway import create_app
from serving.training_process import TrainingProcess
from serving.workers import Workers

LOG_BYTES = 16 << 20
BACKLOG = 2048
KEEP_ALIVE_S = 75
SWITCH_INTERVAL_S = 2e-4
"""how long a thread may keep the event loop waiting; of Python's own 5 ms, a stream feels every one"""


class ServeEvents(Protocol):
    """What the caller is told while the server runs; called in the event loop, must not block."""

    def listening(self, url: str) -> None:
        """The port is open; requests wait for the engines."""
        ...

    def engine_status(self, name: str, status: EngineStatus) -> None:
        """An engine's state or start-up phase, at each change and at least twice a second while it starts."""
        ...

    def ready(self, engines: Sequence[Engine], registered: RegistrySnapshot) -> None:
        """Every engine has become ready, or failed, for the first time."""
        ...

    def stopping(self) -> None:
        """A signal came: running streams end, nothing new is taken."""
        ...


def serve(settings: Settings, events: ServeEvents) -> None:
    """Run until SIGINT or SIGTERM. Raises SettingsError, or OSError when the address cannot be bound."""
    import uvloop

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    keys = KeyRing(settings.keys_file)
    check_binding(settings, keys)
    run = _serve_alone if settings.workers == 1 else _serve_many
    with contextlib.closing(bind(settings)) as listener:
        log_to_file(settings)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run(settings, keys, listener, events))


def bind(settings: Settings) -> socket.socket:
    """A listening socket on the configured address.

    Raises OSError, or SettingsError for a host that does not resolve.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise SettingsError(f"host {settings.host}: {error.strerror}") from None
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    listener.set_inheritable(True)
    return listener


def url_of(listener: socket.socket) -> str:
    """`http://host:port` of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def log_to_file(settings: Settings) -> None:
    """Send the log to `home`/logs/loradock.log, rotated; warnings also go to the terminal."""
    folder = settings.home / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    file = logging.handlers.RotatingFileHandler(folder / "loradock.log", maxBytes=LOG_BYTES, backupCount=2)
    terminal = logging.StreamHandler()
    terminal.setLevel(logging.WARNING)
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    for handler in (file, terminal):
        handler.setFormatter(formatter)
    logging.basicConfig(level=settings.log_level.upper(), handlers=[file, terminal], force=True)


def uvicorn_config(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """Configure uvicorn as the endpoint needs it: no access log, and streams may end at shutdown."""
    return uvicorn.Config(
        app,
        http="httptools",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nothing here asks where a request came from
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(settings.shutdown_grace_s),
        backlog=BACKLOG,
    )


class AnnouncingServer(uvicorn.Server):
    """uvicorn that tells when a signal has come, before it lets running requests end."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at SIGINT and SIGTERM, without raising them again afterwards as uvicorn does.

        What is around the server still has to be closed, which further signals must not cut off, and an end that was
        asked for is no failure.
        """
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell, then shut down as uvicorn does. A second Ctrl-C cuts running answers, but engines are stopped still."""
        self._on_stop()
        await super().shutdown(sockets)
        if self.force_exit:
            for task in self.server_state.tasks:
                task.cancel()
            await self.lifespan.shutdown()


async def _serve_alone(settings: Settings, keys: KeyRing, listener: socket.socket, events: ServeEvents) -> None:
    training = TrainingProcess(settings, url_of(listener), secrets.token_urlsafe(32))
    keys.admit(training.key, TRAINING)
    gateway, fleet = compose_alone(settings, keys)
    server = AnnouncingServer(uvicorn_config(create_app(gateway), settings), events.stopping)
    events.listening(url_of(listener))
    watcher = _watch_start(fleet.engines, events, lambda: gateway.registered)
    training.start(watcher)
    try:
        await server.serve(sockets=[listener])
        if not server.started:
            raise OSError(f"the server could not start; the reason is in {settings.home / 'logs'}")
    finally:
        watcher.cancel()
        await training.stop()


async def _serve_many(settings: Settings, keys: KeyRing, listener: socket.socket, events: ServeEvents) -> None:
    del keys  # each worker reads them itself
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with tempfile.TemporaryDirectory(prefix="loradock-") as folder:
        training = TrainingProcess(settings, url_of(listener), secrets.token_urlsafe(32))
        control = compose_parent(settings, Path(folder) / "control")
        workers = Workers(settings, listener, Path(folder) / "control", training.key)
        events.listening(url_of(listener))
        watcher = _watch_start(control.fleet.engines, events, lambda: control.registered)
        try:
            await control.start()
            workers.start()
            training.start(watcher)
            await stop.wait()
        finally:
            events.stopping()
            watcher.cancel()
            await training.stop()
            await workers.stop()
            await control.stop()


def _watch_start(
    engines: Sequence[Engine], events: ServeEvents, registered: Callable[[], RegistrySnapshot]
) -> asyncio.Task[None]:
    """Report start-up progress until all engines have settled; later changes of state too."""
    settled = (EngineState.READY, EngineState.FAILED)

    async def watch() -> None:
        while not all(engine.status.state in settled for engine in engines):
            for engine in engines:
                events.engine_status(engine.name, engine.status)
            await asyncio.sleep(0.25)
        events.ready(engines, registered())

    for engine in engines:
        engine.on_change(partial(events.engine_status, engine.name))
    return asyncio.get_running_loop().create_task(watch(), name="start-up progress")

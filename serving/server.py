"""`loradock serve`: one process with the endpoint, its engines and their residency, until a signal ends it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import logging.handlers
import socket
from collections.abc import Callable
from functools import partial
from typing import Protocol

import uvicorn

from configs.settings import Settings, SettingsError
from serving.auth import KeyRing, check_binding
from serving.composition import build_gateway
from serving.engine.base import EngineState, EngineStatus
from serving.engine.factory import build_engines
from serving.gateway import Gateway, create_app

LOG_BYTES = 16 << 20
BACKLOG = 2048
KEEP_ALIVE_S = 75


class ServeEvents(Protocol):
    """What the caller is told while the server runs; called in the event loop, must not block."""

    def listening(self, url: str) -> None:
        """The port is open; requests wait for the engines."""
        ...

    def engine_status(self, name: str, status: EngineStatus) -> None:
        """An engine's state or start-up phase, at each change and at least twice a second while it starts."""
        ...

    def ready(self, gateway: Gateway) -> None:
        """Every engine has become ready, or failed, for the first time."""
        ...

    def stopping(self) -> None:
        """A signal came: running streams end, nothing new is taken."""
        ...


def serve(settings: Settings, events: ServeEvents) -> None:
    """Run until SIGINT or SIGTERM. Raises SettingsError, or OSError when the address cannot be bound."""
    import uvloop

    keys = KeyRing(settings.keys_file)
    check_binding(settings, keys)
    with contextlib.closing(bind(settings)) as listener:
        log_to_file(settings)
        engines = build_engines(settings)
        gateway = build_gateway(settings, keys, engines)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings, gateway, listener, events))


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


def uvicorn_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """Configure uvicorn as the endpoint needs it: no access log, and streams may end at shutdown."""
    return uvicorn.Config(
        app,
        http="httptools",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=round(settings.shutdown_grace_s),
        backlog=BACKLOG,
    )


class AnnouncingServer(uvicorn.Server):
    """uvicorn that tells when a signal has come, before it lets running requests end."""

    def __init__(self, config: uvicorn.Config, on_stop: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_stop = on_stop

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Tell, then shut down as uvicorn does."""
        self._on_stop()
        await super().shutdown(sockets)


async def _serve(settings: Settings, gateway: Gateway, listener: socket.socket, events: ServeEvents) -> None:
    server = AnnouncingServer(uvicorn_config(create_app(gateway), settings), events.stopping)
    events.listening(url_of(listener))
    for engine in gateway.fleet.engines:
        engine.on_change(partial(events.engine_status, engine.name))
    watcher = asyncio.get_running_loop().create_task(_watch_start(gateway, events))
    try:
        await server.serve(sockets=[listener])
    finally:
        watcher.cancel()


async def _watch_start(gateway: Gateway, events: ServeEvents) -> None:
    """Report start-up progress until all engines have settled."""
    engines = gateway.fleet.engines
    settled = (EngineState.READY, EngineState.FAILED)
    while not all(engine.status.state in settled for engine in engines):
        for engine in engines:
            events.engine_status(engine.name, engine.status)
        await asyncio.sleep(0.25)
    events.ready(gateway)

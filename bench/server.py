"""A server of a bench's own, on the real engine, started as users start it."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from bench.environment import ROOT
from bench.processes import Child, free_port
from serving.engine.transport import Transport
from serving.errors import EngineTimeout, EngineUnavailable

START_S = 180.0


@asynccontextmanager
async def served(folder: Path, settings: Mapping[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that is ready; `settings` by their names without `LORADOCK_`. State goes to `folder`."""
    port = free_port()
    command, env = command_of(folder, port, settings)
    with Child(command, folder / "server.log", env=env, cwd=ROOT) as child:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120, limits=limits) as client:
            deadline = time.monotonic() + START_S
            while not await _is_ready(client):
                if not child.running() or time.monotonic() > deadline:
                    raise child.failed("did not become ready")
                await asyncio.sleep(0.5)
            yield client


def command_of(folder: Path, port: int, settings: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """What starts such a server, and its environment."""
    own = {"HOME": str(folder / "home"), "PORT": str(port), **settings}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LORADOCK_")}
    return [sys.executable, "-m", "serving.cli", "serve"], kept | {
        f"LORADOCK_{name}": value for name, value in own.items()
    }


async def until_ready(transport: Transport, child: Child) -> None:
    """Return once a server is ready. Raises ChildFailed."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            if (await transport.fetch("GET", "/ready", timeout_s=10))[0] == httpx.codes.OK:
                return
        except (EngineUnavailable, EngineTimeout):
            pass
        if not child.running() or time.monotonic() > deadline:
            raise child.failed("did not become ready")
        await asyncio.sleep(0.5)


async def _is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/ready")).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False

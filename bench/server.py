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

START_S = 180.0


@asynccontextmanager
async def served(folder: Path, settings: Mapping[str, str]) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a server that is ready; `settings` by their names without `LORADOCK_`. State goes to `folder`."""
    port = free_port()
    own = {"HOME": str(folder / "home"), "PORT": str(port), **settings}
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LORADOCK_")}
    env = kept | {f"LORADOCK_{name}": value for name, value in own.items()}
    with Child([sys.executable, "-m", "serving.cli", "serve"], folder / "server.log", env=env, cwd=ROOT) as child:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120, limits=limits) as client:
            deadline = time.monotonic() + START_S
            while not await _is_ready(client):
                if not child.running() or time.monotonic() > deadline:
                    raise child.failed("did not become ready")
                await asyncio.sleep(0.5)
            yield client


async def _is_ready(client: httpx.AsyncClient) -> bool:
    try:
        return (await client.get("/ready")).status_code == httpx.codes.OK
    except httpx.TransportError:
        return False

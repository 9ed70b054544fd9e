"""`loradock serve` as a process of its own, in front of an upstream of the test."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from bench.environment import ROOT
from bench.mock_upstream import BASE
from bench.processes import Child, free_port


@dataclass
class Served:
    """A running server; `folder` is its TMPDIR."""

    url: str
    folder: Path
    process: Child

    async def ready(self, limit_s: float = 30.0) -> None:
        async with httpx.AsyncClient(trust_env=False) as http, asyncio.timeout(limit_s):
            while True:
                try:
                    if (await http.get(self.url + "/ready")).status_code == 200:
                        return
                except httpx.TransportError:
                    if not self.process.running():
                        raise self.process.failed("ended") from None
                await asyncio.sleep(0.05)

    async def ended(self, limit_s: float = 15.0) -> int:
        """The exit code, once it has ended."""
        deadline = time.monotonic() + limit_s
        while (code := self.process.exit_code) is None:
            assert time.monotonic() < deadline, "still running"
            await asyncio.sleep(0.02)
        return code

    def workers(self) -> list[int]:
        """Process ids of the gateway processes."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return [pid for pid in map(int, children) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]


@contextmanager
def served(home: Path, upstream_url: str, folder: Path, **settings: str) -> Iterator[Served]:
    """On `home`, in front of a stock vLLM server at `upstream_url`; keywords are settings as in the environment.

    Without a training worker, unless a keyword asks for one.
    """
    port = free_port()
    folder.mkdir()
    engine = {"name": "base", "kind": "vllm-remote", "url": upstream_url, "model": BASE, "slots": 2}
    wanted = {"home": str(home), "port": str(port), "engines": json.dumps([engine]), "prefetch": "false"}
    wanted |= {"training__worker": "false"} | settings
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LORADOCK_")}
    environ = kept | {f"LORADOCK_{name.upper()}": value for name, value in wanted.items()} | {"TMPDIR": str(folder)}
    command = [sys.executable, "-m", "serving.cli", "serve"]
    with Child(command, folder.with_suffix(".log"), env=environ, cwd=ROOT) as child:
        yield Served(f"http://127.0.0.1:{port}", folder, child)

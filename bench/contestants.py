"""Who is measured: stock vLLM with its own resolver and LRU, and our engine with its residency.

All are asked by the same client over a unix socket, so that what differs is how adapters come.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from adapters_registry.model import AdapterVersion
from bench.processes import Child
from configs.embedded import BASE, BASE_NAME
from configs.profiles import EngineProfile
from configs.settings import EMBEDDED, EngineSettings
from serving.engine.base import Engine, EngineResponse
from serving.engine.child import make_run_dir
from serving.engine.command import TUNED_KERNELS, environment, render, socket_path, vllm_arguments
from serving.engine.model import BaseModel
from serving.engine.process import VllmEngine
from serving.engine.transport import Transport
from serving.engine.worker.prepared import SUFFIX
from serving.errors import EngineTimeout, EngineUnavailable
from serving.residency import Patience, Residency

START_S = 600.0
SILENCE_S = 300.0
PATIENCE = Patience(None, SILENCE_S)
HTTP_OK = 200
STOCK_SERVER = "vllm.entrypoints.openai.api_server"


@dataclass(frozen=True, slots=True)
class Setup:
    """What all get. `model` is a folder or `embedded`; stock may keep `host_adapters` adapters in host memory."""

    model: str
    profile: EngineProfile
    slots: int
    rank: int
    args: dict[str, Any]
    host_adapters: int

    def as_it_comes(self) -> Setup:
        """Without the profile's flags: vLLM's defaults but for slots, rank, environment and `args`."""
        return replace(self, profile=self.profile.model_copy(update={"args": {}}))

    @property
    def settings(self) -> EngineSettings:
        """As settings of an engine, without staging."""
        return EngineSettings(
            name="base",
            model=self.model,
            served_name=BASE_NAME,
            slots=self.slots,
            max_lora_rank=self.rank,
            staging=False,
            args=self.args,
        )

    @property
    def base(self) -> Path:
        """Folder of the base's config."""
        return BASE if self.model == EMBEDDED else Path(self.model)


class Contestant(Protocol):
    """One way of serving adapters."""

    name: str

    def opening(self, adapter: AdapterVersion | None, body: dict[str, Any]) -> Any:
        """An async context with the answer to a completion; None asks the base."""
        ...

    def pid(self) -> int | None:
        """The process whose tree holds the engine."""
        ...


class Ours:
    """Our engine, as the gateway uses it: held by residency, then asked."""

    name = "ours"

    def __init__(self, engine: Engine, residency: Residency, home: Path | None = None) -> None:
        self.engine = engine
        self.residency = residency
        self._home = home

    def prepared_folders(self) -> list[Path]:
        """Where the engine keeps prepared adapters."""
        return [] if self._home is None else list((self._home / "prepared").iterdir())

    def prepared(self) -> int:
        """How many are prepared."""
        return sum(1 for folder in self.prepared_folders() for _ in folder.glob(f"*{SUFFIX}"))

    def prepared_files(self, adapter: AdapterVersion) -> list[Path]:
        """The adapter's prepared file, one for each worker that lays it out in its own way."""
        return [file for folder in self.prepared_folders() if (file := folder / f"{adapter.digest}{SUFFIX}").exists()]

    @asynccontextmanager
    async def opening(self, adapter: AdapterVersion | None, body: dict[str, Any]) -> AsyncIterator[EngineResponse]:
        """See `Contestant.opening`."""
        async with AsyncExitStack() as stack:
            if adapter is not None:
                await stack.enter_async_context(self.residency.hold(adapter, PATIENCE))
            content = json.dumps(body | {"model": model_of(adapter)}).encode()
            yield await stack.enter_async_context(self.engine.open("/v1/completions", content))

    def pid(self) -> int | None:
        """See `Contestant.pid`."""
        return self.engine.status.pid


class Endpoint:
    """An OpenAI-compatible server in a process of ours."""

    def __init__(self, name: str, transport: Transport, child: Child) -> None:
        self.name = name
        self._transport = transport
        self._child = child

    @asynccontextmanager
    async def opening(self, adapter: AdapterVersion | None, body: dict[str, Any]) -> AsyncIterator[EngineResponse]:
        """See `Contestant.opening`."""
        content = json.dumps(body | {"model": model_of(adapter)}).encode()
        async with self._transport.open("/v1/completions", content) as response:
            yield response

    def pid(self) -> int | None:
        """See `Contestant.pid`."""
        return self._child.pid


def model_of(adapter: AdapterVersion | None) -> str:
    """What a body's `model` says."""
    return BASE_NAME if adapter is None else adapter.engine_name


@asynccontextmanager
async def residency_of(engine: Engine, home: Path | None = None) -> AsyncIterator[Ours]:
    """A running engine, whose state is in `home`, with a residency of its own."""
    residency = Residency(engine)
    residency.start()
    try:
        yield Ours(engine, residency, home)
    finally:
        await residency.stop()


@asynccontextmanager
async def ours(setup: Setup, folder: Path, host_bytes: int) -> AsyncIterator[Ours]:
    """Our engine with staging, ready; its prepared adapters go to `folder`, and `host_bytes` of memory hold some."""
    settings = setup.settings.model_copy(update={"staging": True, "host_bytes": host_bytes})
    model = BaseModel.of(setup.settings)
    engine = VllmEngine(settings, setup.profile, model, home=folder, request_timeout_s=SILENCE_S)
    await engine.start()
    try:
        await engine.wait_ready(START_S)
        async with residency_of(engine, folder) as contestant:
            yield contestant
    finally:
        await engine.stop()


@asynccontextmanager
async def stock(
    setup: Setup, folder: Path, adapters: Path, port: int | None = None, name: str = "stock"
) -> AsyncIterator[Endpoint]:
    """Stock vLLM, ready: it looks an unknown model up in `adapters` and loads it, and the least recently used leaves.

    It listens on `port`, or on a unix socket. `name` is its log's name, too.
    """
    run_dir = make_run_dir()
    model = BaseModel.of(setup.settings).argument
    arguments = vllm_arguments(setup.settings, setup.profile, model, run_dir) | {
        "max_cpu_loras": max(setup.slots, setup.host_adapters),
    }
    env = environment(setup.profile, model, run_dir, os.environ)
    if TUNED_KERNELS not in os.environ | setup.profile.env:
        env.pop(TUNED_KERNELS, None)  # ours, not vLLM's
    env |= {
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        "VLLM_LORA_RESOLVER_CACHE_DIR": str(adapters),
        "VLLM_PLUGINS": "lora_filesystem_resolver",
    }
    if port is None:
        transport = Transport(name, "http://engine", request_timeout_s=SILENCE_S)
        await transport.move(str(socket_path(run_dir)))
    else:
        transport = Transport(name, f"http://127.0.0.1:{port}", request_timeout_s=SILENCE_S)
        arguments |= {"uds": None, "host": "127.0.0.1", "port": port}
    command = [sys.executable, "-m", STOCK_SERVER, *render(arguments)]
    try:
        with Child(command, folder / f"{name}.log", env=env) as child:
            await _until_healthy(transport, child)
            yield Endpoint(name, transport, child)
    finally:
        await transport.close()
        shutil.rmtree(run_dir, ignore_errors=True)


async def _until_healthy(transport: Transport, child: Child) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            if (await transport.fetch("GET", "/health", timeout_s=10))[0] == HTTP_OK:
                return
        except (EngineUnavailable, EngineTimeout) as error:
            if not child.running() or time.monotonic() > deadline:
                raise child.failed("did not become ready") from error
        await asyncio.sleep(0.5)
